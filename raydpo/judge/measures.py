"""Numbers that say how the samples of a round are doing: variety, length, wins.

Comes in: samples or scores. Goes out: one number each (win_rate: three).
Decision: a measure of nothing is a ValueError or None, never 0 or NaN: both would pass for a measurement. Samples come one
prompt after the other, and none is kept.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain

import numpy as np

from raydpo.metrics.intervals import wilson
from raydpo.schema.samples import Sample

MOST_BIGRAMS = 1 << 25
"""Different 2-grams that are held while they are counted: 256 MB."""


class SampleTally:
    """Counts over the samples of any number of prompts, of which none is kept.

    num_samples, num_tokens, num_truncated: so far; tokens with an end-of-sequence one.
    """

    def __init__(self) -> None:
        self.num_samples = self.num_tokens = self.num_truncated = self._num_alike = 0

    def add(self, samples: Sequence[Sample]) -> None:
        """The samples of a prompt."""
        self.num_samples += len(samples)
        self.num_tokens += sum(len(sample.ids) for sample in samples)
        self.num_truncated += sum(sample.ending == "length" for sample in samples)
        self._num_alike += sum(count for count in Counter(sample.text for sample in samples).values() if count > 1)

    @property
    def mean_length(self) -> float:
        """Mean tokens of a sample, an end-of-sequence token included. Raises ValueError without samples."""
        return self._share(self.num_tokens, "mean length")

    @property
    def duplicate_share(self) -> float:
        """Share of samples whose text another sample of the same prompt has as well. Raises ValueError without samples."""
        return self._share(self._num_alike, "share of duplicates")

    @property
    def truncated_share(self) -> float:
        """Share of samples that were cut off. Raises ValueError without samples."""
        return self._share(self.num_truncated, "share of truncated ones")

    def _share(self, number: int, what: str) -> float:
        if not self.num_samples:
            raise ValueError(f"there are no samples, so there is no {what}")
        return number / self.num_samples


Answers = Callable[[], Iterable[Sequence[Sequence[int]]]]
"""Gives the token ids of the answers to one prompt after the other, from the beginning at each call."""


def distinct_bigrams(answers: Answers, most: int = MOST_BIGRAMS) -> float | None:
    """Share of the 2-grams of tokens in all answers together that are distinct: 1 when none comes twice; None when no answer
    has two tokens.

    Li et al. 2016 (arXiv 1510.03055), section 5.2, divide by tokens; here it is by 2-grams, so that 1 can be reached.
    most: different ones that are held at a time, 8 bytes each; where there are more, answers are gone through again for each
    share of them.
    """
    num_bigrams = sum(max(0, len(ids) - 1) for group in answers() for ids in group)
    if not num_bigrams:
        return None
    turns = 1
    while (num_distinct := _num_distinct(answers, turns, most)) is None:
        turns *= 4
    return num_distinct / num_bigrams


def _num_distinct(answers: Answers, turns: int, most: int) -> int | None:
    """How many 2-grams are different, counted in so many turns; None if one of them would hold more than `most`."""
    total = 0
    for turn in range(turns):
        found, fresh, num_fresh = np.zeros(0, np.int64), list[np.ndarray](), 0
        for group in chain(answers(), [None]):
            if group is not None:
                fresh.append(_bigrams(group, turn, turns))
                num_fresh += len(fresh[-1])
            if group is None or num_fresh > max(len(found), most // 8):
                found, fresh, num_fresh = np.unique(np.concatenate([found, *fresh])), [], 0
                if len(found) > most > turns:  # more turns than that would hold nothing
                    return None
        total += len(found)
    return total


def _bigrams(group: Sequence[Sequence[int]], turn: int, turns: int) -> np.ndarray:
    """[n] int64: those 2-grams of some answers that are counted in this turn."""
    arrays = [np.asarray(ids, np.int64) for ids in group if len(ids) > 1]
    found: np.ndarray = np.concatenate([np.zeros(0, np.int64), *(ids[:-1] << 32 | ids[1:] for ids in arrays)])
    counted: np.ndarray = found[(found ^ found >> 32) % turns == turn]
    return counted


def win_rate(scores: Sequence[float], baseline_scores: Sequence[float]) -> tuple[float, float, float]:
    """(rate, low, high): share of prompts on which `scores` is above `baseline_scores`, ties half, with a 95 % interval.

    The interval is Wilson's (`raydpo.metrics.intervals`). Raises ValueError when there are no scores, not as many of both, or
    one is not finite.
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
    return rate, *wilson(rate, n)
