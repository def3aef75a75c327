"""`num_workers` of a role that can work with more or fewer: a number, or {min: 1, max: 4}.

Comes in: the value of the key. Goes out: its two bounds, or what is wrong with them. Decision: one form for trainers and
reference workers, so that a cluster that grows and shrinks is described once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

Workers = int | dict[Literal["min", "max"], int]


def bounds(wanted: Workers) -> tuple[int, int]:
    """Fewest and most workers; a bound that is missing is 0."""
    return (wanted, wanted) if isinstance(wanted, int) else (wanted.get("min", 0), wanted.get("max", 0))


def range_problems(wanted: Workers) -> Iterator[str]:
    """Why a section may not have `wanted` as its `num_workers`."""
    least, most = bounds(wanted)
    if not 1 <= least <= most:
        yield f"num_workers: {wanted}; allowed: a number from 1 on, or {{min: 1, max: 4}} with min from 1 to max"
