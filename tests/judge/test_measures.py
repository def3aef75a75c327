"""Measures of samples: values worked out by hand."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.judge import SampleTally, distinct_bigrams, win_rate
from raydpo.schema.samples import Sample


def texts(words: str) -> list[Sample]:
    return [Sample((number,), text, "eos") for number, text in enumerate(words)]


def distinct(*groups: list[list[int]], most: int = 1 << 20) -> float | None:
    return distinct_bigrams(lambda: groups, most)


def test_distinct_bigrams() -> None:
    assert distinct([[1, 2, 1, 2], [1, 2], [3]]) == 2 / 4  # 12 21 12 | 12
    assert distinct([[1, 2]], [[2, 3]]) == 1.0, "no 2-gram runs across answers"
    assert distinct([[1, 2]], [[1, 2]], [[2, 1]]) == 2 / 3
    assert distinct([[], [1]], [[2]]) is None
    assert distinct() is None


@pytest.mark.parametrize("most", [1, 7, 100, 10_000])
def test_distinct_bigrams_that_cannot_be_held_are_counted_in_turns(most: int) -> None:
    draw = random.Random(4)
    groups = [[[draw.randrange(40) for _ in range(30)] for _ in range(4)] for _ in range(20)]
    ids = [answer for group in groups for answer in group]
    bigrams = [pair for answer in ids for pair in pairwise(answer)]
    assert distinct(*groups, most=most) == len(set(bigrams)) / len(bigrams)


def tally(*groups: list[Sample]) -> SampleTally:
    found = SampleTally()
    for group in groups:
        found.add(group)
    return found


def test_duplicate_share_counts_every_sample_that_has_an_equal_one() -> None:
    assert tally(texts("aab"), texts("abc"), []).duplicate_share == 2 / 6
    assert tally(texts("aaaa")).duplicate_share == 1.0
    assert tally(texts("a"), texts("a")).duplicate_share == 0.0, "answers to different prompts may be equal"
    with pytest.raises(ValueError, match="no samples"):
        _ = tally([], []).duplicate_share


def test_mean_length_and_truncated_share() -> None:
    found = tally([Sample((1, 2, 3), "x", "length")], [Sample((), "", "stop")])
    assert (found.mean_length, found.truncated_share) == (1.5, 0.5)
    with pytest.raises(ValueError, match="no samples"):
        _ = tally().mean_length


def test_win_rate_counts_ties_half() -> None:
    rate, low, high = win_rate([1, 2, 3, 0], [0, 2, 1, 1])
    assert rate == (1 + 0.5 + 1 + 0) / 4
    assert low < rate < high


@pytest.mark.parametrize(
    ("wins", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_of_newcombe(wins: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998 (Statistics in Medicine 17, 857-872), table I, method 3."""
    rate, *interval = win_rate([1.0] * wins + [0.0] * (n - wins), [0.5] * n)
    assert rate == wins / n
    assert interval == pytest.approx([low, high], abs=5e-5)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
def test_win_rates_of_both_sides_mirror_each_other(scores: list[tuple[int, int]]) -> None:
    ours, theirs = zip(*scores, strict=True)
    rate, low, high = win_rate(ours, theirs)
    assert 0 <= low <= rate <= high <= 1
    assert win_rate(theirs, ours) == pytest.approx((1 - rate, 1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(
    ("scores", "baseline"),
    [([], []), ([1.0], []), ([1.0], [1.0, 2.0]), ([float("nan")], [1.0]), ([1.0], [float("inf")])],
)
def test_win_rate_of_nothing(scores: list[float], baseline: list[float]) -> None:
    with pytest.raises(ValueError, match="score"):
        win_rate(scores, baseline)
