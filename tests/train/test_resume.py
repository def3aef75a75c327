"""N steps in one go, or k steps, a committed checkpoint, a new engine and the rest: the same bits."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from raydpo.artifacts import commit_folder, verify_folder
from raydpo.models.resolve import ResolvedModel
from raydpo.schema.rank_events import Evaluated, Finished, Probed, Staged

pytestmark = pytest.mark.slow

LORA = {"rank": 4, "alpha": 8}
CASES = [
    (1, {"zero_stage": 0}),
    (1, {"zero_stage": 2}),
    (1, {"zero_stage": 3}),
    (2, {"zero_stage": 0}),
    (2, {"zero_stage": 2}),
    (2, {"zero_stage": 3}),
    (2, {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True}),
    (1, {"zero_stage": 2, "offload_optimizer": True}),
    (1, {"zero_stage": 0, "lora": LORA}),
    (2, {"zero_stage": 3, "lora": LORA}),
    (2, {"zero_stage": 2, "dtype": "bfloat16"}),
    (2, {"zero_stage": 3, "dtype": "bfloat16"}),
]


def resume(runs, run, step, num_ranks, tmp_path, **options):
    """Commit what `run` staged at `step` and go on from it in a new engine."""
    committed = tmp_path / f"step-{step:06d}"
    run.staged(step).rename(tmp_path / "staged")
    commit_folder(tmp_path / "staged", committed, {"step": step})
    assert verify_folder(committed) == []
    spec = replace(runs.spec(**options), resume=committed, resume_step=step, probe=False)
    return runs.fresh(spec, num_ranks)


@pytest.mark.parametrize(("num_ranks", "options"), CASES, ids=[f"{n} ranks {o}" for n, o in CASES])
def test_weights_are_bitwise_those_of_an_undisturbed_run(runs, num_ranks, options, tmp_path):
    options = {**options, "save_every": 2}
    straight = runs.fresh(runs.spec(**options), num_ranks)
    again = resume(runs, straight, 2, num_ranks, tmp_path, **options)
    assert not again.error
    assert not again.of(Probed)
    assert [event.step for event in again.of(Evaluated)] == [5]
    assert again.losses == straight.losses[2:]
    file = "adapter_model.safetensors" if "lora" in options else "model.safetensors"
    one, two = (load_file(run.staged() / "model" / file) for run in (straight, again))
    assert one.keys() == two.keys()
    differing = [name for name in one if not torch.equal(one[name], two[name])]
    assert differing == []
    before = load_file(tmp_path / "step-000002" / "model" / file)
    assert any(not torch.equal(one[name], before[name]) for name in one)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_run_in_two_parts_by_stop_step(runs, num_ranks, tmp_path):
    """The first part stages where it was told to stop and says nothing of an end."""
    straight = runs.get(num_ranks, zero_stage=2)
    part = runs.fresh(replace(runs.spec(zero_stage=2), stop_step=3), num_ranks)
    assert not part.error
    assert not part.of(Finished)
    assert [(event.step, event.reason) for event in part.of(Staged)] == [(3, "")]
    assert [event.step for event in part.of(Evaluated)] == [0]
    rest = resume(runs, part, 3, num_ranks, tmp_path, zero_stage=2)
    assert part.losses + rest.losses == straight.losses
    assert part.series("learning_rate") + rest.series("learning_rate") == straight.series("learning_rate")
    one, two = (load_file(run.staged() / "model/model.safetensors") for run in (straight, rest))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (rest.finished.step, rest.finished.reason) == (5, "all steps done")


def test_a_stop_at_the_last_step_is_the_end(runs):
    run = runs.fresh(replace(runs.spec(max_steps=2), stop_step=2))
    assert [(event.step, event.reason) for event in run.of(Staged)] == [(2, "all steps done")]
    assert run.finished.step == 2


def test_going_on_after_the_last_step_does_nothing(runs, tmp_path):
    run = runs.fresh(runs.spec(max_steps=2))
    again = resume(runs, run, 2, 1, tmp_path, max_steps=2)
    assert again.losses == []
    assert (again.finished.step, again.finished.reason) == (2, "all steps were done before")


WHOLE = {"global_batch_pairs": 64, "schedule": "constant", "warmup_fraction": 0.0, "learning_rate": 1e-5}
"""One step an epoch, and every epoch the same pairs."""


@pytest.mark.parametrize(
    ("num_ranks", "options"),
    [(1, {"zero_stage": 0}), (2, {"zero_stage": 3}), (2, {"zero_stage": 2, "dtype": "bfloat16"})],
    ids=str,
)
def test_another_run_goes_on_with_the_optimizer_state(runs, num_ranks, options):
    """Two runs of one step, of which the second takes over the state, are one run of two steps: weights in float32 and
    both moments. The model folder alone is not enough."""
    options = {**WHOLE, **options}
    both = runs.fresh(runs.spec(**options, epochs=2.0), num_ranks)
    first = runs.fresh(runs.spec(**options), num_ranks)
    model = ResolvedModel("first", None, first.staged() / "model")
    alone, second = (
        runs.fresh(replace(runs.spec(**options), model=model, probe=False, optimizer=optimizer), num_ranks)
        for optimizer in (None, first.staged())
    )
    assert [(run.error, run.finished.step, len(run.losses)) for run in (both, second)] == [("", 2, 2), ("", 1, 1)]
    before, wanted, found, without = (state(run.staged() / "engine") for run in (first, both, second, alone))
    assert len(wanted) >= 3 * num_ranks, "weights and two moments of every rank"
    assert found.keys() == without.keys() == wanted.keys() == before.keys()
    apart, unlike = (
        [float((other[name] - wanted[name]).norm() / (wanted[name] - before[name]).norm()) for name in wanted]
        for other in (found, without)
    )
    assert max(apart) < (0.1 if options.get("dtype") else 1e-2), "of the way of the second step"
    assert max(unlike) > 0.5


def state(folder: Path) -> dict[str, torch.Tensor]:
    """Weights in float32 and moments of all ranks."""
    return {name: value for path in sorted(folder.iterdir()) for name, value in load_file(path).items()}
