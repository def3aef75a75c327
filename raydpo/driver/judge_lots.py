"""What a judge is shown, in batches: rows that are made of committed samples when a batch is handed out, and not kept.

Comes in: how many rows each batch has, and what makes one. Goes out: batches by number. Decision: a batch is read again when
its verdicts are there, for the digest of what was judged, so that the driver holds those in work and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raydpo.judge.verdict import Row
from raydpo.rundir.on_demand import OnDemand


class JudgeLots(OnDemand[Sequence[Row]]):
    """sizes: rows of each batch. make: number of a batch -> its rows."""

    def __init__(self, sizes: Sequence[int], make: Callable[[int], Sequence[Row]]) -> None:
        super().__init__(len(sizes), make)
        self.sizes = sizes

    @classmethod
    def of(cls, lots: Sequence[Sequence[Row]]) -> JudgeLots:
        """Batches that are there."""
        return cls([len(lot) for lot in lots], lambda number: lots[number])

    @property
    def num_rows(self) -> int:
        return sum(self.sizes)

    def first(self, number: int) -> JudgeLots:
        """The first `number` batches alone."""
        return JudgeLots(self.sizes[:number], self.__getitem__)
