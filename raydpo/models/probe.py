"""How two scorings of the same rows are compared: which examples, and how far apart their sums may be.

Decision: the tolerance is the noise of the arithmetic (batching, sharding), far below what another model would show.
"""

from __future__ import annotations

import numpy as np

NUM_EXAMPLES = 4
TOLERANCE = {"float32": (1e-3, 2e-6), "bfloat16": (0.5, 1e-2)}
"""dtype -> (nats, share of the sum); the larger of the two is allowed."""


def tolerance_nats(dtype: str, sums: np.ndarray) -> np.ndarray:
    """Largest allowed difference of each answer's summed log-prob."""
    floor, share = TOLERANCE[dtype]
    return np.maximum(floor, share * np.abs(sums))


def probe_examples(lengths: np.ndarray) -> list[int]:
    """Examples to compare: evenly spaced by length, from the shortest to the longest."""
    order = np.argsort(lengths, kind="stable")
    places = np.linspace(0, len(order) - 1, min(NUM_EXAMPLES, len(order))).round().astype(int)
    return [int(order[place]) for place in dict.fromkeys(places.tolist())]
