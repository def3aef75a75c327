"""What a run will write is held against the free disk before it begins, with the arithmetic; and the figures are true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from raydpo.disk import free_bytes
from raydpo.driver import disk_room
from raydpo.driver.disk_room import check_training_room, training_need
from raydpo.errors import StorageError
from raydpo.models.lora import add_lora
from raydpo.models.pretrained import load_model
from raydpo.models.resolve import resolve_model
from raydpo.models.trained_size import size_of_full, size_of_lora
from raydpo.models.weight_shapes import shapes_of_model
from raydpo.pipelines import check, precompute, train
from raydpo.rundir.resume import Plan
from raydpo.rundir.workspace import find_workspace
from tests.pipelines.conftest import Finished
from tests.pipelines.toy import Notes, Toy, committed_shards, config


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What the disk has free, as the checks see it, under "bytes"."""
    free = {"bytes": 10**18}
    monkeypatch.setattr(disk_room, "free_bytes", lambda path: free["bytes"])
    return free


def size_on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_estimate_is_what_a_checkpoint_and_a_model_take(toy: Toy, finished: Finished) -> None:
    need = training_need(find_workspace(config(toy, finished.dir), "train"), 4, has_eval=True)
    assert need is not None
    for estimate, folder in ((need.checkpoint, "checkpoints/step-000004"), (need.model, "model")):
        assert 0 <= size_on_disk(finished.dir / folder) - estimate < 40_000, "heads, manifest and probe"


def test_checkpoints_of_weights_alone_hold_no_state(
    toy: Toy, tmp_path: Path, scored: Any, room: dict[str, int]
) -> None:
    wanted = config(toy, tmp_path / "run", {"train.save": "weights"})
    need = training_need(find_workspace(wanted, "train"), 4, has_eval=True)
    assert need is not None
    assert need.checkpoint == need.model
    assert "trained x" not in need.terms
    room["bytes"] = need.total
    train(wanted)
    assert 0 <= size_on_disk(tmp_path / "run/checkpoints/step-000004") - need.checkpoint < 40_000


@pytest.mark.parametrize(
    ("settings", "num_checkpoints", "num_references"),
    [
        ({"train.save_every": 1}, 4, 0),
        ({"train.save_every": 1, "train.keep_checkpoints": 1}, 3, 0),
        ({"train.save_every": 1, "train.keep_checkpoints": 9}, 8, 0),
        ({"train.save_every": None}, 1, 0),
        ({"train.save_every": None, "train.save_every_minutes": 15}, 4, 0),
        ({"train.save_every": 6}, 2, 0),
        ({"train.save_every": None, "train.export": "best", "train.eval_every": 4}, 2, 0),
        ({"train.save_every": None, "reference.sync_every": 2}, 4, 3),
    ],
)
def test_how_many_are_there_at_one_time(
    toy: Toy, tmp_path: Path, settings: dict[str, Any], num_checkpoints: int, num_references: int
) -> None:
    wanted = config(toy, tmp_path / "run", {"train.save_every_minutes": None, **settings})
    need = training_need(find_workspace(wanted, "train"), 8, has_eval=True)
    assert need is not None
    assert (need.num_checkpoints, need.num_references) == (num_checkpoints, num_references)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": "all-linear"},
        {"target_modules": "all-linear", "dora": True},
        {"target_modules": ("q_proj", "down_proj"), "modules_to_save": ("norm",)},
        {"target_modules": r".*\.(k|v)_proj"},
    ],
    ids=["everything", "dora", "names", "pattern"],
)
def test_weights_of_an_adapter_are_counted_without_making_it(toy: Toy, settings: dict[str, Any]) -> None:
    shapes = shapes_of_model(toy.model)
    assert shapes is not None
    model = load_model(resolve_model("model.path", str(toy.model)), "float32", "auto")
    assert size_of_full(shapes).trained == sum(parameter.numel() for parameter in model.parameters())
    adapted = add_lora(model, rank=4, alpha=8, seed=0, **settings)
    assert size_of_lora(shapes, rank=4, **settings).trained == adapted.get_nb_trainable_parameters()[0]


def test_a_training_that_does_not_fit_is_refused_before_it_begins(
    toy: Toy, tmp_path: Path, scored: Any, machine: None, room: dict[str, int]
) -> None:
    wanted = config(toy, tmp_path / "run")
    need = training_need(find_workspace(wanted, "train"), 4, has_eval=True)
    assert need is not None
    room["bytes"] = need.total - 1
    with pytest.raises(StorageError, match=r": 1 too few\.") as failure:
        train(wanted)
    said = str(failure.value)
    assert f"{need.total:,} bytes" in said
    assert f"4 checkpoints x {need.checkpoint:,}" in said
    assert f"train.keep_checkpoints: 1 needs {need.checkpoint:,} bytes less" in said
    assert not (tmp_path / "run/checkpoints").exists()
    room["bytes"] = need.total
    assert train(wanted)["train"]["steps"] == 4


def test_what_lies_there_of_the_run_counts_as_there(toy: Toy, finished: Finished, room: dict[str, int]) -> None:
    workspace = find_workspace(config(toy, finished.dir), "train")
    need = training_need(workspace, 4, has_eval=True)
    assert need is not None
    there = min(size_on_disk(finished.dir / "checkpoints"), need.checkpoints)
    room["bytes"] = need.total - there
    check_training_room(workspace, Plan("resume", {}), 4, has_eval=True)
    room["bytes"] -= 1
    with pytest.raises(StorageError, match=re.escape(f"{there:,} of them are there")):
        check_training_room(workspace, Plan("resume", {}), 4, has_eval=True)
    with pytest.raises(StorageError, match="0 of them are there"):
        check_training_room(workspace, Plan("start", {}), 4, has_eval=True)
    room["bytes"] = need.model
    check_training_room(workspace, Plan("done", {}), 4, has_eval=True)


def test_a_cache_that_does_not_fit_is_refused_before_it_is_scored(
    toy: Toy, tmp_path: Path, machine: None, room: dict[str, int]
) -> None:
    wanted = config(toy, tmp_path / "run", {"reference.cache_dir": str(tmp_path / "cache")})
    room["bytes"] = 1000
    with pytest.raises(StorageError, match=r"reference\.cache_dir: .* rows x .* and 1,000 bytes are free"):
        precompute(wanted)
    assert not committed_shards(tmp_path / "cache")


@pytest.mark.parametrize("fits", [True, False])
def test_a_check_says_the_figure(toy: Toy, tmp_path: Path, room: dict[str, int], fits: bool) -> None:
    room["bytes"] = 10**12 if fits else 1000
    notes = Notes()
    check(config(toy, tmp_path / "run"), notes)
    (said,) = [
        text for text in (notes.info if fits else notes.warning) if text.startswith("checkpoints will take up to")
    ]
    assert ("1.0 TB free" if fits else "1.0 kB free") in said


def test_a_folder_that_is_not_there_yet_is_on_the_disk_above_it(tmp_path: Path) -> None:
    assert abs(free_bytes(tmp_path / "not" / "yet") - free_bytes(tmp_path)) < 2**30
