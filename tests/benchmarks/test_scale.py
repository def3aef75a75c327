"""Costs of data and reference at 10,000 pairs: every row once, and no process grows beyond what its rows need."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.scale import PHASES, exponents, run

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
