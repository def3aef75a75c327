"""How two scorings of the same rows are compared: which examples, and how far apart their sums may be.

Decision: the tolerance is the noise of the arithmetic (batching, sharding), far below what another model would show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUM_EXAMPLES = 4
TOLERANCE = {"float32": (1e-3, 2e-6), "bfloat16": (0.5, 1e-2)}
"""dtype -> (nats, share of the sum); the larger of the two is allowed."""


def tolerance_nats(dtype: str, sums: np.ndarray) -> np.ndarray:
    """Largest allowed difference of each answer's summed log-prob."""
    floor, share = TOLERANCE[dtype]
    found: np.ndarray = np.maximum(floor, share * np.abs(sums))
    return found


def probe_examples(lengths: np.ndarray) -> list[int]:
    """Examples to compare: evenly spaced by length, from the shortest to the longest."""
    order = np.argsort(lengths, kind="stable")
    places = np.linspace(0, len(order) - 1, min(NUM_EXAMPLES, len(order))).round().astype(int)
    return [int(order[place]) for place in dict.fromkeys(places.tolist())]


@dataclass(frozen=True)
class Comparison:
    """Two scorings of the same rows.

    rows: how many.
    worst_nats: largest difference of a row's sum.
    allowed_nats: what it may be.
    problem: (row, first sum, second sum, difference, allowed) of the row that is furthest out, None if all agree.
    """

    rows: int
    worst_nats: float
    allowed_nats: float
    problem: tuple[int, float, float, float, float] | None


def compare(first: Sequence[np.ndarray], second: Sequence[np.ndarray], dtype: str) -> Comparison:
    """Compare per-token log-probs of the same rows by their sums; `second` sets the scale of the tolerance."""
    ours, theirs = (np.array([values.astype(np.float64).sum() for values in side]) for side in (first, second))
    differences, allowed = np.abs(ours - theirs), tolerance_nats(dtype, theirs)
    at, worst = int(np.argmax(differences - allowed)), int(np.argmax(differences))
    row = (at, float(ours[at]), float(theirs[at]), float(differences[at]), float(allowed[at]))
    agree = bool((differences <= allowed).all())
    return Comparison(len(ours), float(differences[worst]), float(allowed[worst]), None if agree else row)
