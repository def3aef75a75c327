"""A reference that is not the start of the policy: declared, proven by the reference workers, kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from raydpo import open_reference
from raydpo.artifacts import CacheIdentity, ReferenceCache
from raydpo.errors import ReferenceMismatchError, ResumeError
from raydpo.pipelines import precompute, train
from raydpo.rundir.workspace import find_workspace
from tests.pipelines.toy import NUM_ROWS, Notes, Toy, committed_shards, config, nats_by_row, write_model

FEW = {"train.max_steps": 2}


def identity(toy: Toy, changes: dict[str, object]) -> CacheIdentity:
    found = find_workspace(config(toy, toy.root / "unused", changes), "train").identity
    assert found is not None
    return found


def fill(cache_dir: Path, whose: CacheIdentity, values_from: Path, shift_nats: float = 0.0) -> None:
    """A cache that says it is `whose`, with the values of another one, `shift_nats` lower."""
    rows = open_reference(values_from).to_pylist()
    values = [np.asarray(row["token_nats"], np.float32) - np.float32(shift_nats) for row in rows]
    ReferenceCache(cache_dir, whose).write_shard("made", [row["row_key"] for row in rows], values)


def test_a_declared_reference(toy: Toy, scored: object, machine: None, tmp_path: Path) -> None:
    reference = shutil.copytree(toy.other, tmp_path / "reference")
    changes = {**FEW, "reference.model": str(reference), "reference.cache_dir": str(tmp_path / "cache")}
    wanted, notes = config(toy, tmp_path / "run", changes), Notes()
    summary = train(wanted, notes)
    assert summary["reference"]["rows_scored"] == NUM_ROWS
    assert nats_by_row(tmp_path / "cache").keys() == nats_by_row(toy.cache).keys()
    assert nats_by_row(tmp_path / "cache") != nats_by_row(toy.cache)
    first = summary["eval"]["first"]
    assert abs(first["eval/rewards/margins"]) > 1e-4
    assert first["eval/rewards/ties"] < 1
    assert [text for text in notes.info if "scored again by the declared reference" in text]
    assert not [text for text in notes.info if "agree with the policy" in text]
    probe = summary["train"]["probe"]
    assert probe["rows"] == 8
    assert 0 < probe["noise_nats"] < 1e-5
    assert probe["max_difference_nats"] <= probe["tolerance_nats"] < 1e-3

    shards = committed_shards(tmp_path / "cache")
    shutil.rmtree(reference)
    write_model(reference, seed=9)
    with pytest.raises(ResumeError, match="was trained against reference"):
        train(wanted)
    assert committed_shards(tmp_path / "cache") == shards, "refused before anything was scored"


def test_wrong_values_of_the_policys_own_start_stop_the_run(toy: Toy, scored: object, tmp_path: Path) -> None:
    """The ranks compare before their first step."""
    cache = tmp_path / "cache"
    fill(cache, identity(toy, {}), toy.cache, shift_nats=0.01)
    with pytest.raises(ReferenceMismatchError, match="the policy before its first step gives"):
        train(config(toy, tmp_path / "run", {"reference.cache_dir": str(cache)}))
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))


def test_wrong_values_of_a_declared_reference_stop_the_run(toy: Toy, scored: object, tmp_path: Path) -> None:
    """The reference workers compare; the policy's own values stand where the reference's should."""
    changes = {"reference.model": str(toy.other), "reference.cache_dir": str(tmp_path / "cache")}
    fill(tmp_path / "cache", identity(toy, changes), toy.cache)
    assert precompute(config(toy, tmp_path / "run", changes))["reference"]["forwards"] == 0
    with pytest.raises(ReferenceMismatchError, match=r"the cache says .* the reference now gives"):
        train(config(toy, tmp_path / "run", changes))
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))
