"""Measures of samples: values worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.judge import distinct_ngrams, duplicate_share, mean_length, win_rate
from raydpo.schema.samples import Sample


def texts(words: str) -> list[Sample]:
    return [Sample((number,), text, "eos") for number, text in enumerate(words)]


def test_distinct_ngrams() -> None:
    answers = [[1, 2, 1, 2], [1, 2], [3]]
    assert distinct_ngrams(answers, 1) == 3 / 7
    assert distinct_ngrams(answers, 2) == 2 / 4  # 12 21 12 | 12
    assert distinct_ngrams(answers, 3) == 1.0
    assert distinct_ngrams([(1, 2), (2, 3)], 2) == 1.0, "no 2-gram runs across answers"


@pytest.mark.parametrize(("answers", "n"), [([], 1), ([[]], 1), ([[1, 2]], 3), ([[1, 2]], 0)])
def test_distinct_ngrams_of_nothing(answers: list[list[int]], n: int) -> None:
    with pytest.raises(ValueError, match="gram"):
        distinct_ngrams(answers, n)


def test_duplicate_share_counts_every_sample_that_has_an_equal_one() -> None:
    assert duplicate_share([texts("aab"), texts("abc"), []]) == 2 / 6
    assert duplicate_share([texts("aaaa")]) == 1.0
    assert duplicate_share([texts("a"), texts("a")]) == 0.0, "answers to different prompts may be equal"
    with pytest.raises(ValueError, match="no samples"):
        duplicate_share([[], []])


def test_mean_length() -> None:
    assert mean_length([Sample((1, 2, 3), "x", "eos"), Sample((), "", "stop")]) == 1.5
    with pytest.raises(ValueError, match="no samples"):
        mean_length([])


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
