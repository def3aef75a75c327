"""Log-probs of held-out answers by token, kept from an evaluation as it goes: what a report shows of single pairs.

Comes in: scored micro-batches. Goes out: this rank's part of `evaluation.arrow`. Decision: `evaluate.kept_pairs` examples at
equal distances over the split, so that the size is bounded and every evaluation keeps the same ones; no forward is added.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from raydpo.artifacts.kept_pairs import SCHEMA, write_part
from raydpo.objectives import ObjectiveInput


class HeldOutNats:
    """Answers of at most `most` of `num_examples` examples, at equal distances, as it is shown them. most: 0 keeps none."""

    def __init__(self, most: int, num_examples: int) -> None:
        self._most, self._every = most, -(-num_examples // most) if most else 1
        self._columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}

    def add(self, inputs: ObjectiveInput) -> None:
        """The answers of a scored micro-batch."""
        if not self._most or inputs.positions is None:
            return
        places = inputs.positions.cpu().numpy()
        for row in np.flatnonzero(places % self._every == 0).tolist():
            for number, sequence in enumerate(inputs.answers[row].tolist()):
                chosen = inputs.sequences == sequence
                self._columns["example"].append(int(places[row]))
                self._columns["answer"].append(number)
                self._columns["policy_nats"].append(_floats(inputs.policy_nats, chosen))
                self._columns["reference_nats"].append(_floats(inputs.reference_nats, chosen))

    def write(self, staging: Path, step: int, rank: int) -> None:
        """As this rank's part of the evaluation after `step`."""
        if self._most:
            write_part(staging, step, rank, self._columns)


def _floats(nats: torch.Tensor | None, chosen: torch.Tensor) -> list[float]:
    return [] if nats is None else nats[chosen].float().tolist()
