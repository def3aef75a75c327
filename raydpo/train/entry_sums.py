"""Held-out metrics of each entry of the data, next to those of the whole split.

Comes in: the examples of a scored micro-batch. Goes out: sums and counts named `<entry>/<metric>`, and their means.
Decision: the loss reads each entry's examples of a micro-batch once more, without another forward, so that the sums of the
whole split are added as ever. A loss that looks at the whole split still does: its entries share one reference point.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raydpo.metrics import Sums, means
from raydpo.objectives import ObjectiveInput
from raydpo.objectives.loss import Loss

MetricsOf = Callable[[ObjectiveInput], Mapping[str, tuple[Any, Any]]]


class EntrySums:
    """Sums by entry. entries: (name, examples) in the order of the split."""

    def __init__(self, entries: Sequence[tuple[str, int]]) -> None:
        self.entries = tuple(name for name, _ in entries)
        self._ends = np.cumsum([number for _, number in entries], dtype=np.int64)
        self.sums = Sums()

    def add(self, inputs: ObjectiveInput, metrics_of: MetricsOf) -> None:
        """Add a micro-batch. metrics_of: sums and counts of the examples that it is given."""
        if not self.entries:
            return
        assert inputs.positions is not None
        entry_of = np.searchsorted(self._ends, inputs.positions.cpu().numpy(), side="right")
        for number in np.unique(entry_of).tolist():
            chosen = torch.from_numpy(np.flatnonzero(entry_of == number)).to(inputs.answers.device)
            metrics = metrics_of(restricted(inputs, chosen))
            self.sums.add({f"{self.entries[number]}/{name}": value for name, value in metrics.items()})

    def names(self, names: Sequence[str]) -> list[str]:
        """Names of the sums, entry by entry. names: of one entry's metrics."""
        return [f"{entry}/{name}" for entry in self.entries for name in names]


def restricted(inputs: ObjectiveInput, examples: Tensor) -> ObjectiveInput:
    """`inputs` with these examples ([e] int64) and the tokens of their answers alone."""
    answers = inputs.answers[examples]
    kept = torch.isin(inputs.sequences, answers)

    def of(values: Tensor | None, index: Tensor) -> Tensor | None:
        return None if values is None else values[index]

    return replace(
        inputs,
        policy_nats=inputs.policy_nats[kept],
        reference_nats=of(inputs.reference_nats, kept),
        sequences=inputs.sequences[kept],
        answers=answers,
        labels=of(inputs.labels, examples),
        example_weights=of(inputs.example_weights, examples),
        token_weights=of(inputs.token_weights, kept),
        log_collisions=of(inputs.log_collisions, kept),
        positions=of(inputs.positions, examples),
    )


def split_means(loss: Loss, names: Sequence[str], entries: Sequence[str], vector: Sequence[float]) -> dict[str, float]:
    """`eval/<metric>` of the whole split, then `eval/<entry>/<metric>`. vector: summed, the split first, then each entry."""
    found, width = dict[str, float](), 2 * len(names)
    for number, prefix in enumerate(["eval/", *(f"eval/{entry}/" for entry in entries)]):
        part = vector[number * width : (number + 1) * width]
        found |= loss.total(means(names, part, prefix), prefix) if part else {}
    return found
