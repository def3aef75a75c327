"""Generators and a judge at the same time, from one thread.

Comes in: requests, and a judging that is open. Goes out: answers, and on the way verdicts. Decision: whoever has news first is
heard first. Where both are in this process they take turns, and the time of each counts as its own; else what is judged while
generators work counts as sampling.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

from raydpo.driver.open_judging import OpenJudging
from raydpo.driver.turns import Turns
from raydpo.runtime import Pool


def run_beside(pool: Pool, items: Sequence[Any], judging: OpenJudging, turns: Turns) -> Iterator[tuple[int, Any]]:
    """What `pool.run(items)` gives. Ends as soon as so many rows failed that the round cannot be made."""
    pool.begin(items)
    while pool.num_unfinished and not judging.is_hopeless:
        if not judging.has_own_work:
            Pool.wait_for_any([pool, *judging.pools])
        yield from pool.step(0.0)
        with turns.taken("judge") if pool.is_in_process and judging.is_in_process else nullcontext():
            judging.advance()
