"""Training with `train.sequence_parallel_size`: numbers are those of one rank, whatever shards the weights."""

import math
from dataclasses import replace

import pytest

from raydpo.schema.rank_events import Stepped
from tests.tables import write_examples
from tests.train import jobs, sequence_jobs
from tests.train.conftest import Run
from tests.train.test_nonfinite import assert_step_3_was_skipped, key_in, poisoned_run
from tests.train.world import GLOBAL_BATCH

METRICS = ("loss", "grad_norm", "rewards/margins")


def shared(runs, num_ranks, size, **options):
    return runs.get(num_ranks, num_workers=num_ranks, sequence_parallel_size=size, **options)


@pytest.mark.parametrize(
    ("num_ranks", "size", "stage", "objective"),
    [
        (2, 2, 0, "dpo"),
        (2, 2, 2, "kto"),
        (2, 2, 3, "dpo"),
        pytest.param(4, 2, 2, "dpo", marks=pytest.mark.slow),
        pytest.param(4, 4, 3, "dpo", marks=pytest.mark.slow),
    ],
)
def test_numbers_are_those_of_one_rank(runs, num_ranks, size, stage, objective):
    alone = runs.get(1, objective=objective)
    run = shared(runs, num_ranks, size, objective=objective, zero_stage=stage)
    assert run.error == ""
    assert len(run.of(Stepped)) == len(alone.of(Stepped))
    for name in METRICS:
        assert run.series(name) == pytest.approx(alone.series(name), rel=1e-5, abs=1e-5), name
    assert run.last_evaluation == pytest.approx(alone.last_evaluation, rel=1e-5, abs=1e-5)
    assert any("on each of the" in event.text for event in run.events if hasattr(event, "text"))


def test_with_an_adapter(runs):
    lora = {"rank": 4, "alpha": 8}
    alone, run = runs.get(1, lora=lora), shared(runs, 2, 2, lora=lora)
    assert run.losses == pytest.approx(alone.losses, rel=1e-5, abs=1e-5)


def test_heads_that_do_not_divide_are_refused_on_all_ranks_alike(runs):
    run = shared(runs, 3, 3)
    assert "3 divides" in run.error
    assert "the model has 4" in run.error


def test_ranks_call_a_sharded_head_as_often_as_each_other_however_answers_fall(runs):
    options = {
        "num_workers": 2,
        "sequence_parallel_size": 2,
        "zero_stage": 3,
        "tokens_per_microbatch": 500,
        "max_steps": 2,
    }
    run = runs.fresh(replace(runs.spec(**options), chunk_tokens=30), num_ranks=2)
    assert run.error == ""
    assert run.losses == pytest.approx(runs.get(1, max_steps=2).losses, rel=1e-5)


@pytest.fixture(scope="module")
def long_prompts(tmp_path_factory):
    """Pairs of which two or three have a prompt, and it is most of what they have."""
    folder = tmp_path_factory.mktemp("long-prompts")
    for split, number in (("train", 14), ("eval", 6)):
        prompts = [[3 + (7 * at + place) % 290 for place in range(120)] for at in range(number)]
        pairs = [(prompts[at // 3 if at < 6 else at // 2], [[5 + at, 9, 2], [8, 6 + at, 7, 2]]) for at in range(number)]
        write_examples(folder, pairs, split)
    return folder


@pytest.mark.parametrize(
    ("num_ranks", "stage"), [(2, 2), pytest.param(4, 3, marks=pytest.mark.slow, id="two groups of two")]
)
def test_each_pair_counts_once(runs, gangs, long_prompts, num_ranks, stage):
    def spec(**options):
        return replace(runs.spec(objective="simpo", tokens_per_microbatch=300, **options), data=long_prompts)

    (alone,) = gangs[1].run(sequence_jobs.counted, spec(), 0)
    shared = spec(num_workers=num_ranks, sequence_parallel_size=2, zero_stage=stage)
    found = gangs[num_ranks].run(sequence_jobs.counted, shared, 0)
    for rank in found:
        assert rank.tokens == alone.tokens
        assert rank.train == pytest.approx(alone.train, rel=1e-5, abs=1e-5)
        assert rank.held_out == pytest.approx(alone.held_out, rel=1e-5, abs=1e-5)
    assert (alone.train["count of loss"], alone.held_out["count of loss"]) == (GLOBAL_BATCH, 6)
    assert [rank.examples for rank in found[::2]] == [rank.examples for rank in found[1::2]], "neighbours read the same"
    of_groups = [example for rank in found[::2] for micro in rank.examples for example in micro]
    assert sorted(of_groups) == sorted(example for micro in alone.examples for example in micro)
    assert num_ranks > 2 or found[0].examples == alone.examples, "in the same order"


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_step_that_is_not_finite_is_skipped_by_all(runs, world, gangs, stage):
    """By all ranks of one group; the gradient is infinite on one of them alone."""
    options = {"num_workers": 2, "sequence_parallel_size": 2, "zero_stage": stage}
    run = poisoned_run(runs, 2, {key_in(world, 3): math.nan}, **options)
    assert_step_3_was_skipped(run)
    spec = runs.spec(save_every=1, **options)
    events, *_ = gangs[2].run(jobs.train_with_bad_gradient, spec, 3)
    run = Run(spec, events)
    assert_step_3_was_skipped(run)
    assert math.isfinite(run.skipped[0].loss)
    assert not math.isfinite(run.skipped[0].grad_norm)
