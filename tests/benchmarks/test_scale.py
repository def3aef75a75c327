"""Costs of data and reference at 10,000 pairs: every row once, and no process grows beyond what its rows need."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.scale import FOLDER, PHASES, exponents, run
from benchmarks.scale_run import NUM_STEPS

pytestmark = pytest.mark.slow

SIZES = (500, 10_000)
MB = {"plan": 40, "open": 40, "rank": 20}
"""Private memory above that of the process, at most."""


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], dict[str, Any]]:
    found = run(SIZES, tmp_path_factory.mktemp("scale"))
    return {(line["phase"], line["pairs"]): line for line in found}


def test_every_row_is_there_once(lines: dict[tuple[str, int], dict[str, Any]]) -> None:
    assert set(lines) == {(phase, size) for phase in PHASES for size in SIZES}
    for size in SIZES:
        assert lines["prepare", size]["pairs"] == size
        assert lines["plan", size]["rows"] == lines["open", size]["rows"] == 2 * size
        assert lines["plan", size]["shards"] == -(-2 * size // 512)


def test_memory_is_bounded(lines: dict[tuple[str, int], dict[str, Any]]) -> None:
    for phase, most_mb in MB.items():
        assert lines[phase, SIZES[1]]["private_mb"] < most_mb, phase
    assert lines["rank", SIZES[1]]["private_mb"] < lines["rank", SIZES[0]]["private_mb"] + 20
    assert set(exponents(list(lines.values()))) == set(PHASES)


def published() -> dict[tuple[str, int], dict[str, Any]]:
    newest = max(FOLDER.glob("scale_1*.json"), key=lambda path: path.stem[-10:])
    return {(line["phase"], line["pairs"]): line for line in json.loads(newest.read_text())["results"]}


def test_what_is_published_of_a_million_pairs_keeps_to_its_bounds() -> None:
    lines, million = published(), 1_000_000
    assert {phase for phase, pairs in lines if pairs == million} == set(PHASES)
    assert lines["plan", million]["rows"] == lines["open", million]["rows"] == 2 * million
    for phase in ("prepare", "plan", "open"):
        assert lines[phase, million]["process_mb"] < 1000, f"the driver, {phase}"
    for pairs in (10_000, 100_000, million):
        grown = lines["rank", pairs]["process_mb"] - lines["rank", 1_000]["process_mb"]
        assert grown < 20, f"a rank, from {lines['rank', 1000]['token_shards']} shard"


def test_growth_is_measured_from_ten_thousand_pairs_on() -> None:
    lines = [
        {"phase": "plan", "pairs": pairs, "cpu_s": cpu_s, "private_mb": mb}
        for pairs, cpu_s, mb in ((1_000, 5, 5), (10_000, 0.01, 0.2), (100_000, 7, 7), (1_000_000, 1.0, 200.0))
    ]
    assert exponents(lines) == {"plan": {"cpu_s": 1.0, "private_mb": 1.5}}
    assert exponents(lines[:2]) == {"plan": {"cpu_s": -2.7, "private_mb": -1.4}}
    assert exponents(lines[:1]) == {}


def test_a_run_on_a_million_pairs_keeps_to_its_bounds() -> None:
    newest = max(FOLDER.glob("scale_run_*.json"), key=lambda path: path.stem[-10:])
    runs = {run["pairs"]: run for run in json.loads(newest.read_text())["results"]}
    smallest, largest = runs[min(runs)], runs[max(runs)]
    assert (smallest["pairs"], largest["pairs"]) == (1_000, 1_000_000)
    assert largest["driver_mb"] < 1000
    assert largest["other_mb"] < smallest["other_mb"] + 300, "ranks, and workers of the reference"
    assert {run["steps"] for run in runs.values()} == {NUM_STEPS}
