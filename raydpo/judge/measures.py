"""Numbers that say how the samples of a round are doing: variety, length, wins.

Comes in: samples or scores. Goes out: one number each (win_rate: three).
Decision: a measure of nothing is a ValueError, never 0 or NaN: both would pass for a measurement.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from raydpo.schema.samples import Sample

_Z_95 = 1.959963984540054  # a standard normal is within this of 0 with probability 0.95


def distinct_ngrams(answers: Sequence[Sequence[int]], n: int) -> float:
    """Share of the n-grams of tokens in all answers together that are distinct: 1 when none comes twice.

    Li et al. 2016 (arXiv 1510.03055), section 5.2, divide by tokens; here it is by n-grams, so that 1 can be reached.
    Raises ValueError when n is below 1 or no answer has n tokens.
    """
    if n < 1:
        raise ValueError(f"n is {n}; an n-gram has at least 1 token")
    ngrams = Counter(tuple(ids[start : start + n]) for ids in answers for start in range(len(ids) - n + 1))
    if not ngrams:
        raise ValueError(f"none of {len(answers)} answers has {n} tokens, so there is no share of distinct {n}-grams")
    return len(ngrams) / ngrams.total()


def duplicate_share(groups: Sequence[Sequence[Sample]]) -> float:
    """Share of samples whose text another sample of the same group (the answers to one prompt) has as well.

    Raises ValueError without samples.
    """
    num_samples = sum(map(len, groups))
    if not num_samples:
        raise ValueError("there are no samples, so there is no share of duplicates")
    counts = [Counter(sample.text for sample in group) for group in groups]
    return sum(count for texts in counts for count in texts.values() if count > 1) / num_samples


def mean_length(samples: Sequence[Sample]) -> float:
    """Mean tokens of a sample, an end-of-sequence token included. Raises ValueError without samples."""
    if not samples:
        raise ValueError("there are no samples, so there is no mean length")
    return sum(len(sample.ids) for sample in samples) / len(samples)


def win_rate(scores: Sequence[float], baseline_scores: Sequence[float]) -> tuple[float, float, float]:
    """(rate, low, high): share of prompts on which `scores` is above `baseline_scores`, ties half, with a 95 % interval.

    The interval is Wilson's (1927, JASA 22, 209-212), with p the rate, n the prompts and z = 1.96:
        (p + z^2 / 2n  +-  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)
    It is meant for wins and losses; half wins vary less, so with ties it is wider than it had to be.
    Raises ValueError when there are no scores, not as many of both, or one is not finite.
    """
    n = len(scores)
    if n == 0 or n != len(baseline_scores):
        raise ValueError(
            f"{n} scores and {len(baseline_scores)} of the baseline; as many of both, and some, are needed"
        )
    if not all(map(math.isfinite, (*scores, *baseline_scores))):
        raise ValueError("a score is not finite; rows that the judge failed on must be left out of both lists")
    pairs = list(zip(scores, baseline_scores, strict=True))
    rate = sum(1.0 if ours > theirs else 0.5 if ours == theirs else 0.0 for ours, theirs in pairs) / n
    middle = rate + _Z_95**2 / (2 * n)
    half = _Z_95 * math.sqrt(rate * (1 - rate) / n + _Z_95**2 / (4 * n**2))
    scale = 1 + _Z_95**2 / n
    # At 0 and 1 the bound is the rate itself, but for rounding.
    return rate, min(rate, max(0.0, (middle - half) / scale)), max(rate, min(1.0, (middle + half) / scale))
