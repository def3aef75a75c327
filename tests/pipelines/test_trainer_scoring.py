"""The reference scored by the trainers before their first step: the shards of workers, and the training that they give."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from raydpo.errors import ConfigError
from raydpo.pipelines import precompute, train
from tests.pipelines.toy import NUM_ROWS, Notes, Toy, config, weights

CUTS = {"reference.tokens_per_batch": 300, "train.save_every": None, "train.max_steps": 2}


def shards(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.glob("*/shards/*.arrow")}


@pytest.fixture(scope="module")
def by_workers(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """dtype -> (run directory, cache) of a training whose reference a worker scored."""
    found: dict[str, tuple[Path, Path]] = {}

    def run(dtype: str) -> tuple[Path, Path]:
        if dtype not in found:
            root = tmp_path_factory.mktemp(f"workers-{dtype}")
            train(config(toy, root / "run", {**CUTS, "model.dtype": dtype, "reference.cache_dir": str(root / "cache")}))
            found[dtype] = root / "run", root / "cache"
        return found[dtype]

    return run


@pytest.mark.parametrize(
    ("dtype", "changes"),
    [
        pytest.param("float32", {}, id="one rank"),
        pytest.param("float32", {"train.zero_stage": 3}, id="ZeRO 3"),
        pytest.param("bfloat16", {"train.zero_stage": 2}, id="bfloat16"),
        pytest.param("float32", {"train.zero_stage": 3, "train.num_workers": 2}, id="ZeRO 3 on two ranks"),
        pytest.param("float32", {"train.lora": {"rank": 2}, "train.tokens_per_microbatch": 100}, id="an adapter"),
    ],
)
def test_trainers_write_the_shards_of_workers(
    toy: Toy, by_workers: Any, tmp_path: Path, dtype: str, changes: dict[str, Any]
) -> None:
    run, cache = by_workers(dtype)
    mine = {"model.dtype": dtype, "reference.cache_dir": str(tmp_path / "cache"), "reference.weights": "trainers"}
    notes = Notes()
    summary = train(config(toy, tmp_path / "run", {**CUTS, **mine, **changes}), notes)
    assert summary["reference"]["rows_scored"] == NUM_ROWS
    assert summary["reference"]["forwards"] >= NUM_ROWS / 16
    assert shards(tmp_path / "cache") == shards(cache)
    assert len(shards(cache)) == -(-NUM_ROWS // 16)
    assert summary["train"]["probe"]["max_difference_nats"] < 1e-4 if dtype == "float32" else True
    if not changes:
        assert weights(tmp_path / "run/model") == weights(run / "model")
    again = train(config(toy, tmp_path / "again", {**CUTS, **mine, "train.max_steps": 1}))
    assert again["reference"]["rows_scored"] == 0


def test_trainers_score_what_is_missing_and_a_run_that_goes_on_leaves_it_to_workers(
    toy: Toy, by_workers: Any, tmp_path: Path
) -> None:
    _, whole = by_workers("float32")
    cache = tmp_path / "cache"
    shutil.copytree(whole, cache)
    mine = {**CUTS, "reference.cache_dir": str(cache), "reference.weights": "trainers"}
    for lost in lost_shards(cache, 3):
        lost.unlink()
    summary = train(config(toy, tmp_path / "run", {**mine, "train.save_every": 1}))
    assert summary["reference"]["rows_scored"] == 3 * 16
    assert shards(cache) == shards(whole)
    shutil.rmtree(tmp_path / "run/checkpoints/step-000002")
    for lost in lost_shards(cache, 2):
        lost.unlink()
    notes = Notes()
    summary = train(config(toy, tmp_path / "run", {**mine, "train.save_every": 1}), notes)
    assert summary["train"]["resumed_from_step"] == 1
    assert summary["reference"]["rows_scored"] == 2 * 16
    assert any("no trainer starts afresh here" in text for text in notes.info)
    assert shards(cache) == shards(whole)


def lost_shards(cache: Path, count: int) -> list[Path]:
    """Both files of some whole shards."""
    names = sorted(path.stem.partition("-")[0] for path in cache.glob("*/shards/*.arrow"))[:count]
    found = [path for name in names for path in cache.glob(f"*/shards/{name}*")]
    assert len(found) == 2 * count
    return found


def test_without_trainers_workers_score(toy: Toy, tmp_path: Path) -> None:
    notes = Notes()
    mine = {"reference.cache_dir": str(tmp_path / "cache"), "reference.weights": "trainers"}
    assert precompute(config(toy, tmp_path / "run", mine), notes)["reference"]["rows_scored"] == NUM_ROWS
    assert "reference.weights: trainers; no trainer starts afresh here, so workers score" in notes.info


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        pytest.param({"reference.model": "other"}, "starts from other weights", id="another reference"),
        pytest.param({"train.lora": {"dora": True}}, "train.lora.dora round", id="DoRA"),
    ],
)
def test_what_trainers_cannot_score_is_refused_before_anything_starts(
    toy: Toy, tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    named = {key: str(toy.other) if value == "other" else value for key, value in changes.items()}
    mine = {"reference.cache_dir": str(tmp_path / "cache"), "reference.weights": "trainers"}
    with pytest.raises(ConfigError, match=f"reference.weights: trainers; .*{why}"):
        train(config(toy, tmp_path / "run", {**mine, **named}))
    assert not shards(tmp_path / "cache")
