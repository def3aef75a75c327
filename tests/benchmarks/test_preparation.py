"""The comparison of preparations: what it adds up, and that what was published of one worker and two are the same bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.made import RESULTS
from benchmarks.preparation import SIDES, medians


def lines(cpu_us: dict[str, list[float]]) -> list[dict[str, Any]]:
    return [
        {"side": side, "cpu_us_a_pair": one, "wall_us_a_pair": 2 * one}
        for side in SIDES
        for one in cpu_us.get(side, [9])
    ]


def test_medians_are_multiples_of_the_first_side() -> None:
    found = medians(lines({"raydpo": [7, 100, 8], "datasets.map, prompt once": [1, 4, 6]}))
    assert list(found) == list(SIDES)
    assert found["raydpo"] == {"cpu_us_a_pair": 8, "wall_us_a_pair": 16, "cpu_times_raydpo": 1}
    assert found["datasets.map, prompt once"] == {"cpu_us_a_pair": 4, "wall_us_a_pair": 8, "cpu_times_raydpo": 0.5}


@pytest.fixture
def published() -> dict[str, Any]:
    newest = max(RESULTS.glob("preparation_*.json"), key=lambda path: path.stem[-10:])
    found: dict[str, Any] = json.loads(newest.read_text())["results"]
    return found


def test_what_is_published_are_the_medians_of_what_was_measured(published: dict[str, Any]) -> None:
    assert medians(published["repeats"]) == published["medians"]
    counts = {side: sum(line["side"] == side for line in published["repeats"]) for side in SIDES}
    assert len(set(counts.values())) == 1, "sides took turns"
    assert (
        published["medians"]["raydpo"]["cpu_us_a_pair"]
        <= published["medians"]["datasets.map, texts apart"]["cpu_us_a_pair"]
    )


def test_one_worker_and_two_wrote_the_same_shards(published: dict[str, Any]) -> None:
    digests = {line["digest"] for line in published["repeats"] if line["side"].startswith("raydpo")}
    assert len(digests) == 1
    assert digests != {""}
