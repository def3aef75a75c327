"""Generators and a judge at the same time, from one thread.

Comes in: requests, and a judging that is open. Goes out: answers, and on the way verdicts. Decision: whoever has news first is
heard first. Where both are in this process they take turns, and the time of each counts as its own; else what is judged while
generators work counts as sampling.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from raydpo.driver.open_judging import OpenJudging
from raydpo.driver.turns import Turns
from raydpo.runtime import Pool, requested


@dataclass(frozen=True)
class JudgedBeside:
    """What goes on beside generators.

    judging: takes what is sampled. turns: is told whose turn it is. numbers: of the requests among all of the round, which
    counts where the round ends by its pairs.
    """

    judging: OpenJudging
    turns: Turns
    numbers: Sequence[int]


def run_beside(pool: Pool, items: Sequence[Any], beside: JudgedBeside) -> Iterator[tuple[int, Any]]:
    """What `pool.run(items)` gives, of those that the round needs. Ends as soon as so many rows failed that the round cannot be
    made."""
    judging, num_begun = beside.judging, 0
    pool.begin(items, are_there=False)
    while not judging.is_hopeless:
        wanted = _wanted(beside, num_begun)
        if wanted:
            pool.put(*range(num_begun, num_begun + wanted))
            num_begun += wanted
        if judging.is_cut:
            pool.drop_waiting()
        if pool.num_unfinished:
            if not judging.has_own_work:
                Pool.wait_for_any([pool, *judging.pools])
            yield from pool.step(0.0)
        elif requested() or judging.is_cut or num_begun == len(items) or not judging.is_at_work:
            return
        elif judging.pools:
            Pool.wait_for_any(judging.pools)
        with beside.turns.taken("judge") if pool.is_in_process and judging.is_in_process else nullcontext():
            judging.advance()


def _wanted(beside: JudgedBeside, num_begun: int) -> int:
    """How many more may begin now."""
    if requested() or beside.judging.is_cut:
        return 0
    cut, numbers = beside.judging.cut, beside.numbers
    if cut is None:
        return len(numbers) - num_begun
    wanted = 0
    while num_begun + wanted < len(numbers) and cut.may_begin(numbers[num_begun + wanted]):
        wanted += 1
    return wanted
