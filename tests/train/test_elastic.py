"""A state that some ranks wrote under some ZeRO stage goes on under any others: the same bits by name, the same next loss.

`make test` walks through all cells once, each read as the next one after it was written. With RAYDPO_SOAK=1 every cell reads
what every cell wrote, in bfloat16 and with offload too.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from tests.train import state_jobs
from tests.train.conftest import Runs
from tests.train.state_jobs import State, Visit

pytestmark = pytest.mark.slow

Cell = tuple[int, dict[str, Any]]
"""Ranks, and what is said of their engine."""
LONG = {"epochs": 8.0, "schedule": "constant", "warmup_fraction": 0.0}
LORA = {"lora": {"rank": 4, "alpha": 8}}
STAGES = [{"zero_stage": stage} for stage in (0, 1, 2, 3)]
OFFLOAD = [
    *({"zero_stage": stage, "offload_optimizer": True} for stage in (1, 2, 3)),
    {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True},
]
ALL_PAIRS = {"full": (STAGES, {}), "lora": (STAGES, LORA), "bfloat16": (STAGES, {"dtype": "bfloat16"})}
ALL_PAIRS |= {"offload": (OFFLOAD, {}), "offload bfloat16": (OFFLOAD, {"dtype": "bfloat16"})}


def cells(stages: list[dict[str, Any]], *ranks: int) -> list[Cell]:
    return [(number, stage) for number in ranks for stage in stages]


def visit(runs: Runs, cell: Cell, options: dict[str, Any], *args: Any) -> Visit:
    num_ranks, stage = cell
    first, *others = runs.gangs[num_ranks].run(state_jobs.visit, runs.spec(**LONG, **options, **stage), *args)
    assert all(other.loss == first.loss for other in others)
    return first


def assembled(folder: Path) -> State:
    """What the files of a state hold together."""
    parts: dict[str, dict[int, torch.Tensor]] = defaultdict(dict)
    for path in folder.iterdir():
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - a file is no mapping
                kind, start, name = key.split(":", 2)
                assert int(start) not in parts[f"{name}/{kind}"], f"{key} is there twice"
                parts[f"{name}/{kind}"][int(start)] = file.get_tensor(key)
    return {name: torch.cat([found[start] for start in sorted(found)]).numpy() for name, found in parts.items()}


def same(one: State, other: State) -> bool:
    """Bit for bit, by name."""
    assert one.keys() == other.keys()
    return all(np.array_equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("options", [{}, LORA], ids=["full", "lora"])
def test_every_cell_goes_on_from_the_one_before(runs: Runs, options: dict[str, Any], tmp_path: Path) -> None:
    route = [*cells(STAGES, 1, 2, 3), (1, STAGES[0])]
    before: Visit | None = None
    for step, cell in enumerate(route):
        source = tmp_path / str(step - 1) if before else None
        found = visit(runs, cell, options, step, source, tmp_path / str(step))
        if before is not None:
            assert same(found.loaded, before.saved), cell
            assert found.loss == pytest.approx(before.next_loss, rel=1e-6), cell
            assert not same(found.loaded, found.saved), "a step moved the state"
        assert len(list((tmp_path / str(step)).iterdir())) == cell[0], "a file a rank"
        on_disk = assembled(tmp_path / str(step))
        flat = {name: value.ravel() for name, value in found.saved.items() if not name.endswith("/step")}
        assert same(on_disk, flat), cell
        assert {float(found.saved[name]) for name in found.saved if name.endswith("/step")} == {step + 1.0}
        before = found


def test_ranks_refuse_together_what_one_of_them_cannot_read(runs: Runs, tmp_path: Path) -> None:
    """A file that one node alone sees half: none may go on and wait for the other."""
    spec = runs.spec(**LONG, zero_stage=2)
    whole, half = tmp_path / "whole", tmp_path / "half"
    runs.gangs[2].run(state_jobs.visit, spec, 0, None, whole)
    shutil.copytree(whole, half)
    path = half / "rank-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    one, other = runs.gangs[2].run(state_jobs.refusal, spec, [whole, half])
    assert one == other
    assert one.startswith(
        "ResumeError: the training state of a checkpoint does not fit this run, so nothing was trained."
    )
    assert f"{path} cannot be read as training state" in one
    assert runs.gangs[2].run(state_jobs.refusal, spec, [whole, whole]) == ["loaded", "loaded"]
    (said,) = set(runs.gangs[2].run(state_jobs.refusal, runs.spec(**LONG, **LORA, zero_stage=2), [whole, whole]))
    assert "lacks model.base_model" in said
    assert "holds what this run does not train: model." in said


@pytest.mark.skipif(not os.environ.get("RAYDPO_SOAK"), reason="all pairs take minutes: RAYDPO_SOAK=1 runs them")
@pytest.mark.parametrize("kind", ALL_PAIRS)
def test_every_cell_goes_on_from_every_other(runs: Runs, kind: str, tmp_path: Path) -> None:
    stages, options = ALL_PAIRS[kind]
    all_cells = cells(stages, 1, 2, 3)
    written = [visit(runs, cell, options, 0, None, tmp_path / str(i)) for i, cell in enumerate(all_cells)]
    folders = [tmp_path / str(number) for number in range(len(all_cells))]
    exact = 1e-6 if "bfloat16" not in kind else 0.05
    for cell in all_cells:
        num_ranks, stage = cell
        spec = runs.spec(**LONG, **options, **stage)
        found, *_ = runs.gangs[num_ranks].run(state_jobs.load_each, spec, 1, folders)
        for (state, loss), source, writer in zip(found, written, all_cells, strict=True):
            assert same(state, source.saved), f"{writer} to {cell}"
            assert loss == pytest.approx(source.next_loss, rel=exact), f"{writer} to {cell}"
