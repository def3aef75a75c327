"""One update, however it is computed: ranks, micro-batches, ZeRO stages, offload, gradient checkpointing, bf16."""

import math
from dataclasses import replace

import pytest

from raydpo.schema.rank_events import Alive, Evaluated, Staged, Stepped
from tests.train import jobs
from tests.train.world import NUM_STEPS

pytestmark = pytest.mark.slow

LORA = {"rank": 4, "alpha": 8}


def test_a_run_starts_at_ln_2_learns_and_says_what_happens(runs):
    run = runs.get()
    kinds = [type(event).__name__ for event in run.events if not isinstance(event, Alive)]
    assert kinds == [
        "ModelReady",
        "Noted",
        "Probed",
        "Evaluated",
        *["Stepped"] * NUM_STEPS,
        "Evaluated",
        "Staging",
        "Staged",
        "Finished",
    ]
    assert run.losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert run.first_evaluation["eval/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert run.first_evaluation["eval/rewards/ties"] == 1
    assert run.last_evaluation["eval/loss"] < 0.5
    assert run.last_evaluation["eval/rewards/accuracies"] > 0.8
    assert run.probed.max_difference_nats < 1e-4
    assert run.finished.step == NUM_STEPS
    assert run.series("epoch")[-1] == 1


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_two_ranks_and_one_give_the_same_losses(runs, stage):
    one, two = runs.get(zero_stage=0), runs.get(num_ranks=2, zero_stage=stage)
    assert two.losses == pytest.approx(one.losses, abs=1e-5)
    assert two.series("grad_norm") == pytest.approx(one.series("grad_norm"), rel=1e-4)
    assert two.last_evaluation == pytest.approx(one.last_evaluation, abs=1e-3)


@pytest.mark.parametrize("stage", [0, 3])
def test_the_head_is_called_as_often_on_every_rank(runs, stage):
    """Under ZeRO-3 each call of the head is a collective; answers of unlike length must not pull ranks apart."""
    spec = replace(runs.spec(zero_stage=stage, tokens_per_microbatch=600), chunk_tokens=7)
    assert runs.fresh(spec, 2).losses == pytest.approx(runs.get().losses, abs=1e-5)


def test_a_weight_is_gathered_once_a_micro_batch(runs, gangs):
    """Under ZeRO-3, from the second step on, by when DeepSpeed has seen the order of modules. It forgets an order that
    changes, so micro-batches with more and with fewer answer tokens must call the head equally often."""
    spec = replace(runs.spec(zero_stage=3, tokens_per_microbatch=400), chunk_tokens=64)
    num_weights, (_, *steps) = gangs[2].run(jobs.count_gathers, spec, 4)[0]
    assert min(step.micro_batches for step in steps) > 1
    assert [step.head for step in steps] == [step.micro_batches for step in steps]
    assert [step.all for step in steps] == [num_weights * step.micro_batches for step in steps]


def test_other_ranks_say_that_they_are_alive(runs, gangs):
    answers = gangs[2].run(jobs.train, runs.spec(max_steps=2))
    assert len(answers[0][0]) == len(answers[1][0])
    assert [type(event) for event in answers[1][0] if not isinstance(event, Alive)] == [Staged]  # its own part
    assert {event.step for event in answers[0][0] if isinstance(event, Alive)} == {0, 2}  # blocks of the evaluations


@pytest.mark.parametrize("tokens", [1, 10**6])
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_micro_batches_do_not_change_the_update(runs, tokens, num_ranks):
    run = runs.get(num_ranks=num_ranks, tokens_per_microbatch=tokens)
    assert run.losses == pytest.approx(runs.get().losses, abs=1e-5)
    assert run.series("grad_norm") == pytest.approx(runs.get().series("grad_norm"), rel=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"zero_stage": 1},
        {"zero_stage": 2},
        {"zero_stage": 3},
        {"zero_stage": 2, "offload_optimizer": True},
        {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True},
    ],
    ids=["1", "2", "3", "2 optimizer offloaded", "3 all offloaded"],
)
def test_zero_stages_give_the_same_losses(runs, options):
    assert runs.get(**options).losses == pytest.approx(runs.get().losses, abs=1e-4)
    assert runs.get(**options).series("grad_norm") == pytest.approx(runs.get().series("grad_norm"), rel=1e-3)


def test_clipping_is_the_same_at_every_stage_and_does_something(runs):
    clipped = [runs.get(num_ranks=n, zero_stage=s, max_grad_norm=0.5) for n, s in ((1, 0), (2, 2), (2, 3))]
    free = runs.get(zero_stage=0, max_grad_norm=0)
    assert abs(clipped[0].losses[-1] - free.losses[-1]) > 1e-3
    for run in clipped[1:]:
        assert run.losses == pytest.approx(clipped[0].losses, abs=1e-5)
    assert clipped[0].series("grad_norm")[0] == pytest.approx(free.series("grad_norm")[0])  # before clipping
    assert clipped[0].series("grad_norm")[0] > 1


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_rank_with_nothing_to_do_changes_nothing(runs, stage):
    # One pair a step: one of two ranks has an empty micro-batch in every step.
    one = runs.get(global_batch_pairs=1, max_steps=4)
    two = runs.get(num_ranks=2, global_batch_pairs=1, max_steps=4, zero_stage=stage)
    assert two.losses == pytest.approx(one.losses, abs=1e-5)
    assert len(set(one.losses)) == 4


@pytest.mark.parametrize(
    ("num_ranks", "options"),
    [(1, {}), (1, {"lora": LORA}), (2, {"zero_stage": 3}), (2, {"zero_stage": 3, "lora": LORA})],
    ids=["full", "lora", "full zero 3", "lora zero 3"],
)
def test_gradient_checkpointing_gives_the_same_losses(runs, num_ranks, options):
    plain = runs.get(num_ranks=num_ranks, **options)
    recomputed = runs.get(num_ranks=num_ranks, gradient_checkpointing=True, **options)
    assert recomputed.losses == pytest.approx(plain.losses, abs=1e-6)
    assert recomputed.series("grad_norm") == pytest.approx(plain.series("grad_norm"), rel=1e-5)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_gradient_checkpointing_runs_layers_twice(runs, gangs, lora):
    for checkpointing, factor in ((False, 1), (True, 2)):
        spec = runs.spec(gradient_checkpointing=checkpointing, lora=lora)
        ((micro_batches, calls),) = gangs[1].run(jobs.count_layer_calls, spec)
        assert micro_batches > 1
        assert calls == [factor * micro_batches] * 2


@pytest.mark.parametrize(("num_ranks", "stage"), [(1, 0), (2, 2), (2, 3)])
def test_bf16_runs_near_fp32(runs, num_ranks, stage):
    run, exact = runs.get(num_ranks=num_ranks, dtype="bfloat16", zero_stage=stage), runs.get()
    assert run.losses != exact.losses
    assert run.losses[0] == pytest.approx(math.log(2), abs=5e-3)
    assert run.losses == pytest.approx(exact.losses, abs=0.06)
    assert run.losses[-1] < 0.3


def test_evaluations_and_checkpoints_come_when_asked(runs):
    run = runs.get(eval_every=2, save_every=3, log_every=2)
    assert [e.step for e in run.of(Evaluated)] == [0, 2, 4, 5]
    assert [e.step for e in run.of(Staged)] == [3, 5]
    assert [e.step for e in run.of(Stepped)] == [2, 4, 5]
    assert [e.step for e in run.of(Alive)] == [0, 1, 2, 3, 4, 5]  # steps 1 and 3, and a block of each evaluation
    assert [bool(e.metrics) for e in run.of(Staged)] == [False, True]
    assert [e.reason for e in run.of(Staged)] == ["", "all steps done"]


def test_early_stopping_ends_the_run_with_a_checkpoint(runs):
    run = runs.get(eval_every=1, early_stopping_patience=1, learning_rate=1e-12, export="best")
    assert run.finished.step == 1
    assert "did not rise in 1 evaluations" in run.of(Staged)[-1].reason


@pytest.mark.parametrize("options", [{}, {"lora": LORA, "gradient_checkpointing": True}], ids=["full", "lora"])
def test_compiled_layers_give_the_same_losses(runs, gangs, options):
    plain, (before,) = runs.get(**options), gangs[1].run(jobs.count_compiled)
    compiled, (after,) = runs.get(compile=True, **options), gangs[1].run(jobs.count_compiled)
    assert after > before
    assert compiled.losses == pytest.approx(plain.losses, abs=1e-5)
    assert compiled.last_evaluation == pytest.approx(plain.last_evaluation, abs=1e-3)
