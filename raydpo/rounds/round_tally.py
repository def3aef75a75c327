"""What a round counts while its pairs are made: metrics of samples, scores and pairs, of which none is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raydpo.judge.measures import SampleTally
from raydpo.rounds.paired_rows import Scores
from raydpo.schema.samples import Sample


class RoundTally:
    """counts: what became of samples and pairs, by name. judged: what the committed scores say of themselves; None where nobody
    judged."""

    def __init__(self, judged: Mapping[str, Any] | None) -> None:
        self._judged, self._samples = judged, SampleTally()
        self._num_failed = self._num_scores = 0
        self._sum_of_scores = 0.0
        self.counts: dict[str, int] = {}

    def add(self, samples: Sequence[Sample], scores: Scores, counts: Mapping[str, int]) -> None:
        """The samples of a prompt, their scores, and what became of them."""
        self._samples.add(samples)
        self._num_failed += scores is None
        for score in scores or ():
            self._num_scores, self._sum_of_scores = self._num_scores + 1, self._sum_of_scores + score
        for reason, number in counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + number

    def metrics(self, num_pairs: int, distinct: Mapping[str, float]) -> dict[str, float]:
        """Of all samples and pairs. distinct: the share of distinct 2-grams, where there is one."""
        judged = {} if self._judged is None else {k: v for k, v in self._judged.items() if k == "answers_with_marks"}
        return {
            **({"samples/mean_score": self._sum_of_scores / self._num_scores} if self._num_scores else {}),
            "samples/mean_length_tokens": self._samples.mean_length,
            **distinct,
            "samples/duplicate_share": self._samples.duplicate_share,
            "samples/truncated_share": self._samples.truncated_share,
            "judge/failed": float(self._num_failed if self._judged is not None else 0),
            **{f"judge/{what}": float(number) for what, number in judged.items()},
            "pairs/made": float(num_pairs),
            **{f"pairs/{reason}": float(number) for reason, number in self.counts.items()},
        }
