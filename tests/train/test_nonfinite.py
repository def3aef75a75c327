"""A loss or gradient that is not finite, on one rank, in one step: nobody updates; three in a row end the run."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from raydpo.artifacts import ExampleTable
from raydpo.batches import Order
from raydpo.schema.rank_events import Skipped, Staged, Stepped
from tests.train import jobs
from tests.train.conftest import Run
from tests.train.world import GLOBAL_BATCH, NUM_TRAIN

pytestmark = pytest.mark.slow

CASES = [(1, 0), (1, 1), (2, 0), (2, 2), (2, 3)]


def key_in(world, step, answer=0, place=4):
    """Row key of one answer in step `step` (from 1)."""
    examples = Order(NUM_TRAIN, GLOBAL_BATCH, 1, seed=3).examples(step - 1)
    return ExampleTable.open(world.data, "train").row_keys(int(examples[place]))[answer]


def weights(run, step):
    return load_file(run.staged(step) / "model" / "model.safetensors")


def assert_step_3_was_skipped(run):
    (skipped,) = run.of(Skipped)
    assert skipped.step == 3
    assert len(skipped.sources) == GLOBAL_BATCH
    assert all(source.partition(":")[0].endswith("train.jsonl") for source in skipped.sources)
    assert [event.step for event in run.of(Stepped)] == [1, 2, 4, 5]
    assert [event.metrics["skipped_steps"] for event in run.of(Stepped)] == [0, 0, 1, 1]
    before, after, later = weights(run, 2), weights(run, 3), weights(run, 4)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(not torch.equal(after[name], later[name]) for name in after)
    assert all(torch.isfinite(value).all() for value in weights(run, 5).values())
    assert [event.step for event in run.of(Staged)] == [1, 2, 3, 4, 5]


def poisoned_run(runs, num_ranks, poison, **options):
    spec = replace(runs.spec(save_every=1, **options), probe=False)
    return runs.fresh(spec, num_ranks, poison=poison)


@pytest.mark.parametrize(("num_ranks", "stage"), CASES)
def test_a_nan_on_one_rank_is_skipped_by_all(runs, world, num_ranks, stage):
    run = poisoned_run(runs, num_ranks, {key_in(world, 3): math.nan}, zero_stage=stage)
    assert_step_3_was_skipped(run)
    assert math.isnan(run.skipped[0].loss)
    assert run.losses[:2] == runs.get(num_ranks=num_ranks, zero_stage=stage).losses[:2]
    assert not run.error


@pytest.mark.parametrize(("num_ranks", "stage"), CASES)
def test_an_infinite_loss_with_a_finite_gradient_is_skipped(runs, world, num_ranks, stage):
    run = poisoned_run(runs, num_ranks, {key_in(world, 3, answer=1): -math.inf}, zero_stage=stage)
    assert_step_3_was_skipped(run)
    assert run.skipped[0].loss == math.inf


@pytest.mark.parametrize(("num_ranks", "stage"), [(2, 0), (2, 1), (2, 2), (2, 3)])
def test_an_infinite_gradient_with_a_finite_loss_is_skipped(runs, gangs, num_ranks, stage):
    spec = runs.spec(save_every=1, zero_stage=stage)
    events, *_ = gangs[num_ranks].run(jobs.train_with_bad_gradient, spec, 3)
    run = Run(spec, events)
    assert_step_3_was_skipped(run)
    assert math.isfinite(run.skipped[0].loss)
    assert not math.isfinite(run.skipped[0].grad_norm)


def test_bf16_skips_too(runs, world):
    run = poisoned_run(runs, 2, {key_in(world, 3): math.nan}, zero_stage=2, dtype="bfloat16")
    assert_step_3_was_skipped(run)


@pytest.mark.parametrize(("num_ranks", "stage"), [(1, 0), (2, 2), (2, 3)])
def test_three_in_a_row_stop_the_run(runs, world, num_ranks, stage):
    poison = {key_in(world, step): math.nan for step in (2, 3, 4)}
    run = poisoned_run(runs, num_ranks, poison, zero_stage=stage)
    assert run.error.startswith("NonFiniteError: 3 steps in a row up to step 4")
    assert [event.step for event in run.skipped] == [2, 3, 4]
    assert [event.step for event in run.of(Stepped)] == [1]


def test_steps_that_were_skipped_before_a_planned_stop_count(runs, world):
    spec = replace(runs.spec(), probe=False, skipped_steps=2, skipped_in_a_row=2)
    stopped = runs.fresh(spec, 1, poison={key_in(world, 1): math.nan})
    assert stopped.error.startswith("NonFiniteError: 3 steps in a row up to step 1")
    going_on = runs.fresh(spec, 1, poison={key_in(world, 2): math.nan})
    assert not going_on.error
    assert going_on.of(Stepped)[-1].metrics["skipped_steps"] == 3


def test_a_good_step_between_starts_the_count_again(runs, world):
    poison = {key_in(world, step): math.nan for step in (1, 2, 4, 5)}
    run = poisoned_run(runs, 1, poison)
    assert not run.error
    assert [event.step for event in run.skipped] == [1, 2, 4, 5]
    assert [event.metrics["skipped_steps"] for event in run.of(Stepped)] == [2]
    again = poisoned_run(runs, 1, poison, max_nonfinite_steps=2)
    assert again.error.startswith("NonFiniteError: 2 steps in a row up to step 2")


def test_a_step_that_fails_leaves_the_checkpoint_before_it(runs, gangs):
    """Its model is still being written when the next step begins."""
    spec = runs.spec(save_every=2)
    spec.staging.mkdir(parents=True, exist_ok=True)
    ((events, error),) = gangs[1].run(jobs.train_until_it_fails, spec, 3)
    assert error == "out of memory"
    (staged,) = [event for event in events if isinstance(event, Staged)]
    assert staged.step == 2
    assert (Path(staged.folder) / "model/model.safetensors").is_file()
