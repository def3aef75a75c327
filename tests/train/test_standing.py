"""A run on ranks that stand is the run that fresh ranks make: every metric and every byte of its checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raydpo.schema.rank_events import Evaluated, ModelReady, Noted, Staged, Stepped
from raydpo.train import TrainSpec
from tests.train import standing_jobs
from tests.train.conftest import Run, Runs
from tests.train.world import NUM_STEPS

pytestmark = pytest.mark.slow

LORA = {"lora": {"rank": 2, "alpha": 4, "target_modules": "all-linear"}}
CASES: list[tuple[str, int, dict[str, Any]]] = [
    ("stage 0", 1, {"zero_stage": 0}),
    ("stage 1", 2, {"zero_stage": 1}),
    ("stage 3", 2, {"zero_stage": 3}),
    ("bfloat16", 2, {"zero_stage": 2, "dtype": "bfloat16"}),
    ("stage 3 in bfloat16", 2, {"zero_stage": 3, "dtype": "bfloat16"}),
    ("lora", 1, {"zero_stage": 0, **LORA}),
    ("lora in bfloat16", 2, {"zero_stage": 2, "dtype": "bfloat16", **LORA}),
    ("lora under stage 3", 2, {"zero_stage": 3, **LORA}),
    ("recomputed", 1, {"zero_stage": 0, "activation_memory_gb": 2e-4}),
]


def seeded(spec: TrainSpec, seed: int) -> TrainSpec:
    """The same with the seed of another round."""
    run = spec.config.run.model_copy(update={"seed": seed})
    return replace(spec, config=spec.config.model_copy(update={"run": run}))


def next_round(runs: Runs, seed: int = 11, **options: Any) -> TrainSpec:
    """From other weights, with another order and another adapter."""
    spec = seeded(runs.spec(policy=runs.world.policy, **options), seed)
    spec.staging.mkdir(parents=True)
    return spec


def first_round(runs: Runs, **options: Any) -> TrainSpec:
    """From the weights that a next round does not start from."""
    spec = seeded(runs.spec(**options), 5)
    spec.staging.mkdir(parents=True)
    return spec


def in_turn(runs: Runs, num_ranks: int, *specs: TrainSpec) -> list[Run]:
    answers = runs.gangs[num_ranks].run(standing_jobs.train_in_turn, specs)
    return [Run(spec, events) for spec, events in zip(specs, answers[0], strict=True)]


def outcome(run: Run) -> dict[str, Any]:
    """All numbers that a run gave but its clock's, and the bytes that it staged last."""
    steps = [{k: v for k, v in event.metrics.items() if k != "tokens_per_s"} for event in run.of(Stepped)]
    folder = Path(run.of(Staged)[-1].folder)
    files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return {"steps": steps, "evaluations": [event.metrics for event in run.of(Evaluated)], **files}


def assert_same(ours: Run, theirs: Run) -> None:
    found, wanted = outcome(ours), outcome(theirs)
    assert found.keys() == wanted.keys()
    different = [name for name in wanted if found[name] != wanted[name]]
    assert not different


@pytest.mark.parametrize(("num_ranks", "options"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_round_on_ranks_that_stand_is_that_of_fresh_ones(runs: Runs, num_ranks: int, options: dict[str, Any]) -> None:
    first, second, third = first_round(runs, **options), next_round(runs, **options), next_round(runs, **options)
    fresh = runs.fresh(next_round(runs, **options), num_ranks)
    _, again, once_more = in_turn(runs, num_ranks, first, second, third)
    assert_same(again, fresh)
    assert_same(once_more, fresh)
    assert [run.of(ModelReady)[0].is_loaded for run in (again, once_more)] == [False, False]


@pytest.mark.parametrize(
    "options", [{"zero_stage": 1, "dtype": "bfloat16"}, {"zero_stage": 3}], ids=["bf16", "stage 3"]
)
def test_a_carried_state_is_read_as_by_fresh_ranks(runs: Runs, options: dict[str, Any]) -> None:
    before = runs.fresh(next_round(runs, 5, **options), 2)
    state = before.staged()

    def carried() -> TrainSpec:
        return replace(
            next_round(runs, **options), optimizer=state, model=replace(before.spec.model, folder=state / "model")
        )

    _, again = in_turn(runs, 2, first_round(runs, **options), carried())
    assert_same(again, runs.fresh(carried(), 2))


@pytest.mark.parametrize("optimizer", ["fresh", "carried"])
@pytest.mark.parametrize(
    ("num_ranks", "options"),
    [(1, {"zero_stage": 0}), (2, {"zero_stage": 1, "dtype": "bfloat16"}), (2, {"zero_stage": 3, "dtype": "bfloat16"})],
    ids=["stage 0", "bfloat16", "stage 3 in bfloat16"],
)
def test_ranks_that_made_the_weights_read_nothing(
    runs: Runs, num_ranks: int, options: dict[str, Any], optimizer: str
) -> None:
    first = next_round(runs, 5, **options)
    made = first.staging / f"step-{NUM_STEPS:06d}"

    def second(*, stands: bool) -> TrainSpec:
        model = replace(first.model, folder=made / "model")
        state = made if optimizer == "carried" else None
        return replace(next_round(runs, **options), model=model, optimizer=state, stands=stands)

    _, again = in_turn(runs, num_ranks, first, second(stands=True))
    assert_same(again, runs.fresh(second(stands=False), num_ranks))
    (ready,) = again.of(ModelReady)
    assert (ready.is_loaded, ready.bytes_read) == (False, 0)


def test_other_settings_are_built_anew_and_said(runs: Runs) -> None:
    second = next_round(runs, zero_stage=0, weight_decay=0.3)
    fresh = runs.fresh(next_round(runs, zero_stage=0, weight_decay=0.3))
    _, again = in_turn(runs, 1, next_round(runs, 5, zero_stage=0), second)
    assert_same(again, fresh)
    assert again.of(ModelReady)[0].is_loaded
    assert any("was built anew" in event.text for event in again.of(Noted))


def test_a_model_that_cannot_be_given_other_weights_is_not_kept(runs: Runs) -> None:
    dora = {"zero_stage": 0, "lora": {**LORA["lora"], "dora": True}}
    _, again = in_turn(runs, 1, next_round(runs, 5, **dora), next_round(runs, **dora))
    assert_same(again, runs.fresh(next_round(runs, **dora)))
    assert again.of(ModelReady)[0].hindrance == "DoRA begins with the norms of its matrices"
