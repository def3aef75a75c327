"""(sum, count) pairs that can be added up over micro-batches, packed into one vector, and divided once at the end.

Decision: float64 throughout, so that adding thousands of micro-batches loses nothing that a reader could see.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


class Sums:
    """Named sums with counts. Both may be torch scalars: they stay on their device until `vector` is asked for."""

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}
        self._counts: dict[str, Any] = {}

    def add(self, metrics: Mapping[str, tuple[Any, Any]]) -> None:
        for name, (value, count) in metrics.items():
            value = value.double() if hasattr(value, "double") else float(value)
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0.0) + count

    def check(self, names: Iterable[str]) -> None:
        """Raises ValueError for a metric that was added and is not among `names`: it would be lost in silence."""
        if lost := self._sums.keys() - set(names):
            raise ValueError(
                f"metrics that nobody declared: {', '.join(sorted(lost))}. An objective of another package names its own in "
                "`metrics`; ours stand in raydpo/metrics/declared.py."
            )

    def vector(self, names: Iterable[str]) -> list[float]:
        """[sum, count, sum, count, ...] in the order of `names`; 0, 0 for a name that was never added."""
        return [float(value) for value in self.scalars(names)]

    def scalars(self, names: Iterable[str]) -> list[Any]:
        """The same without waiting for a device: a number that is on one stays there."""
        return [value for n in names for value in (self._sums.get(n, 0.0), self._counts.get(n, 0.0))]


def means(names: Iterable[str], vector: Iterable[float], prefix: str = "") -> dict[str, float]:
    """Divide a (summed) vector: name -> mean, leaving out what nobody counted.

    Margins of answers that come one by one are the difference of the two means.
    """
    values = list(vector)
    found = {prefix + name: values[2 * i] / values[2 * i + 1] for i, name in enumerate(names) if values[2 * i + 1] > 0}
    for family in (f"{prefix}rewards", f"{prefix}log_ratios"):
        sides = [found.get(f"{family}/{side}") for side in ("chosen", "rejected")]
        if f"{family}/margins" not in found and sides[0] is not None and sides[1] is not None:
            found[f"{family}/margins"] = sides[0] - sides[1]
    return found
