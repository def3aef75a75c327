"""Verbs that must cost nothing: `check` loads no model, starts no Ray and writes nothing; sft and simpo have no reference."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from raydpo.config.render import dump
from raydpo.errors import ConfigError
from raydpo.pipelines import check
from tests.pipelines.toy import NUM_EVAL, NUM_TRAIN, Toy, config, everything_in, make_toy


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_toy(tmp_path_factory.mktemp("light"))


@pytest.fixture(scope="module")
def said(small: Toy) -> list[dict[str, Any]]:
    """What a fresh process says of check, then of precompute with sft and simpo. The weights are garbage."""
    (small.model / "model.safetensors").write_bytes(b"not a model")
    with small.train.open("a") as file:
        file.write("{broken\n")
    files = []
    for name, objective in ((name, {"name": name}) for name in ("dpo", "sft", "simpo")):
        settings = config(small, small.root / name, {"data.max_bad_fraction": 0.5}, objective=objective)
        files.append(small.root / f"{name}.yaml")
        files[-1].write_text(dump(settings))
    before = everything_in(small.root)
    command = [sys.executable, "-m", "tests.pipelines.light", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    changed = {name for name, seen in everything_in(small.root).items() if before.get(name) != seen}
    return [{**json.loads(line), "changed": changed} for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_check_reads_the_data_and_says_what_a_run_would_do(said: list[dict[str, Any]]) -> None:
    data, plan = said[0]["summary"]["data"], said[0]["summary"]["plan"]
    assert (data["lines_read"], data["pairs_used"]) == (NUM_TRAIN + NUM_EVAL + 1, NUM_TRAIN + NUM_EVAL)
    assert data["quarantined"] == {"malformed_json": 1}
    assert plan == {"steps": 4, "steps_per_epoch": 4}


def test_check_starts_no_ray_and_writes_nothing(said: list[dict[str, Any]]) -> None:
    assert said[0]["imported"] == []
    assert not [name for name in said[0]["changed"] if name.startswith("dpo")]


@pytest.mark.parametrize("place", [1, 2], ids=["sft", "simpo"])
def test_without_a_reference_there_is_nothing_to_precompute(said: list[dict[str, Any]], small: Toy, place: int) -> None:
    reference = said[place]["summary"]["reference"]
    assert (reference["rows"], reference["rows_scored"], reference["forwards"]) == (0, 0, 0)
    assert any("nothing to precompute" in note for note in said[place]["notes"])
    assert "ray" not in said[place]["imported"]
    assert not small.cache.exists()


def test_a_reference_model_that_nothing_reads_is_refused(small: Toy) -> None:
    wanted = config(small, small.root / "odd", {"reference.model": str(small.other)}, objective={"name": "simpo"})
    with pytest.raises(ConfigError, match=r"reference\.model is set, but objective simpo has no reference"):
        check(wanted)
