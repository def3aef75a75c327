"""From numbers of pairs to what a person should know before training.

Comes in: columns of pairs, and the report of the preparation. Goes out: `Facts`. Intervals are Wilson's, 95 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from raydpo.data import DataReport
from raydpo.inspection.pair_figures import PairColumns
from raydpo.metrics.intervals import wilson

LIMITS = (256, 512, 1024, 2048, 4096, 8192, 16384)
"""Values of `data.max_length` that are looked at."""
ALIKE = 0.9
"""Answers that share more than this of their words are too alike to tell much."""


@dataclass(frozen=True)
class Proportion:
    """`count` of `total`, with its 95 % interval after Wilson (1927), which holds for shares near 0 and 1, too."""

    count: int
    total: int

    @property
    def value(self) -> float:
        return self.count / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.value, self.total) if self.total else (0.0, 1.0)


@dataclass(frozen=True)
class Facts:
    """What is known of the training pairs, all lengths in tokens.

    pairs, prompts: used, and how many different prompts they have.
    lengths: "prompt", "chosen", "rejected", "pair" (prompt and longer answer) -> mean, p50, p95, p99, max.
    longer_chosen: pairs of unequal length whose chosen answer is the longer one.
    length_difference: mean of chosen less rejected.
    over_limit: `data.max_length` -> pairs that are longer.
    alike: pairs whose answers overlap by more than ALIKE. overlap: median.
    repeated: pairs that stand there before. contradicted: pairs that also stand there with the answers exchanged.
    eval_pairs, eval_in_train: held-out pairs, and those of them whose prompt is trained on.
    """

    pairs: int
    prompts: int
    lengths: Mapping[str, Mapping[str, float]]
    longer_chosen: Proportion
    length_difference: float
    over_limit: Mapping[int, Proportion]
    alike: Proportion
    overlap: float
    repeated: int
    contradicted: int
    eval_pairs: int
    eval_in_train: int


def facts_of(train: PairColumns, held_out: PairColumns) -> Facts:
    """The facts of used pairs."""
    longest = train.prompt_tokens + np.maximum(train.chosen_tokens, train.rejected_tokens)
    differences = train.chosen_tokens - train.rejected_tokens
    columns = {
        "prompt": train.prompt_tokens,
        "chosen": train.chosen_tokens,
        "rejected": train.rejected_tokens,
        "pair": longest,
    }
    total = len(train)
    return Facts(
        pairs=total,
        prompts=len(np.unique(train.prompts)),
        lengths={name: _spread(values) for name, values in columns.items()},
        longer_chosen=Proportion(int((differences > 0).sum()), int((differences != 0).sum())),
        length_difference=float(differences.mean()) if total else 0.0,
        over_limit={limit: Proportion(int((longest > limit).sum()), total) for limit in LIMITS},
        alike=Proportion(int((train.overlap > ALIKE).sum()), total),
        overlap=float(np.median(train.overlap)) if total else 0.0,
        repeated=total - len(np.unique(_rows(train.prompts, train.chosen, train.rejected))),
        contradicted=_contradicted(train),
        eval_pairs=len(held_out),
        eval_in_train=int(np.isin(held_out.prompts, train.prompts).sum()),
    )


def left_out(report: DataReport) -> Mapping[str, int]:
    """Lines that are not used, by reason."""
    return dict(sorted(report.quarantined.items(), key=lambda each: -each[1]))


def _spread(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    shares = {f"p{share}": float(np.percentile(values, share, method="lower")) for share in (50, 95, 99)}
    return {"mean": float(values.mean()), **shares, "max": float(values.max())}


def _rows(*columns: np.ndarray) -> np.ndarray:
    """Columns of hashes as one column of records, which `np.unique` and `np.isin` compare whole."""
    names = [f"f{number}" for number in range(len(columns))]
    rows = np.empty(len(columns[0]), dtype=[(name, np.uint64) for name in names])
    for name, column in zip(names, columns, strict=True):
        rows[name] = column
    return rows


def _contradicted(pairs: PairColumns) -> int:
    there = set(_rows(pairs.prompts, pairs.chosen, pairs.rejected).tolist())
    return sum(row in there for row in _rows(pairs.prompts, pairs.rejected, pairs.chosen).tolist())
