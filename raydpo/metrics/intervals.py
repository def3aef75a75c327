"""Intervals of shares."""

from __future__ import annotations

import math

Z_95 = 1.959963984540054
"""A standard normal is within this of 0 with probability 0.95."""


def wilson(rate: float, number: int) -> tuple[float, float]:
    """The 95 % interval of a share of `number` > 0 trials (Wilson 1927, JASA 22, 209-212), with p the rate and z = 1.96:

        (p + z^2 / 2n  +-  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    It is meant for wins and losses; half wins vary less, so with ties it is wider than it had to be.
    """
    middle = rate + Z_95**2 / (2 * number)
    half = Z_95 * math.sqrt(rate * (1 - rate) / number + Z_95**2 / (4 * number**2))
    scale = 1 + Z_95**2 / number
    # At 0 and 1 the bound is the rate itself, but for rounding.
    return min(rate, max(0.0, (middle - half) / scale)), max(rate, min(1.0, (middle + half) / scale))
