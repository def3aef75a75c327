"""How two scorings of the same rows are compared: which examples, and how far apart their sums may be.

Decision: where one who scores can score twice, the tolerance is eight times the noise of rounding that it measured
(`rounding`), which is far below what another model would show; else that of a dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

NUM_EXAMPLES = 4
MARGIN = 8
"""How many times the measured noise two scorings may be apart. Each of them has it once."""
TOLERANCE = {"float32": (1e-3, 2e-6), "bfloat16": (0.5, 1e-2)}
"""dtype -> (nats, share of the sum); the larger of the two is allowed where nothing was measured."""

Tolerance = Callable[[Sequence[np.ndarray]], np.ndarray]
"""Per-token log-probs of rows -> largest allowed difference of each row's sum, nats."""


def tolerance_of(dtype: str) -> Tolerance:
    """Of an engine that cannot be asked how much it rounds: its dtype's."""
    return lambda rows: tolerance_nats(dtype, np.array([row.astype(np.float64).sum() for row in rows]))


def tolerance_nats(dtype: str, sums: np.ndarray) -> np.ndarray:
    """Largest allowed difference of each answer's summed log-prob."""
    floor, share = TOLERANCE[dtype]
    found: np.ndarray = np.maximum(floor, share * np.abs(sums))
    return found


@dataclass(frozen=True)
class Noise:
    """What rounding does to the log-probs of one model. token_nats: of a token, root of the mean square."""

    token_nats: float

    @classmethod
    def between(cls, plain: Sequence[np.ndarray], moved: Sequence[np.ndarray]) -> Noise:
        """From rows scored twice: the larger of what tokens, and what sums over the root of their length, are apart."""
        apart = [then.astype(np.float64) - now for now, then in zip(plain, moved, strict=True) if len(now)]
        if not apart:
            return cls(0.0)
        tokens = float(np.square(np.concatenate(apart)).mean())
        sums = float(np.mean([row.sum() ** 2 / len(row) for row in apart]))
        return cls(math.sqrt(max(tokens, sums)))

    def tolerance(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """Errors of tokens add up as a random walk does; values are kept in float32, and rounded once more."""
        stored = 2.0**-23 * np.array([np.abs(row.astype(np.float64)).sum() for row in rows])
        found: np.ndarray = MARGIN * self.token_nats * np.sqrt([len(row) for row in rows]) + stored
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


def compare(first: Sequence[np.ndarray], second: Sequence[np.ndarray], tolerance: Tolerance) -> Comparison:
    """Compare per-token log-probs of the same rows by their sums; `second` sets the scale of the tolerance."""
    ours, theirs = (np.array([values.astype(np.float64).sum() for values in side]) for side in (first, second))
    differences, allowed = np.abs(ours - theirs), tolerance(second)
    at, worst = int(np.argmax(differences - allowed)), int(np.argmax(differences))
    row = (at, float(ours[at]), float(theirs[at]), float(differences[at]), float(allowed[at]))
    agree = bool((differences <= allowed).all())
    return Comparison(len(ours), float(differences[worst]), float(allowed[worst]), None if agree else row)
