"""Training with `train.sequence_parallel_size`: numbers are those of one rank, whatever shards the weights."""

from dataclasses import replace

import pytest

from raydpo.schema.rank_events import Stepped

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
