"""What roles ask for, what the nodes have, and whether the one fits into the other.

What comes in: a Demand a role and the resources of each node in Ray's words ({"CPU": 8.0, "GPU": 1.0, ...}).
What goes out: nothing, or one ResourceError with a sentence for every role that can never be placed.
Decision: roles run one after the other, so each demand is compared alone with all there is; what other jobs hold at
the moment is not subtracted, because it comes back. Workers are fitted node by node: 3 CPUs twice hold no third
worker of 2 CPUs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raydpo.errors import ResourceError

_EPSILON = 1e-6
"""Ray counts in steps of 1e-4; this only absorbs the rounding of the division."""


@dataclass(frozen=True)
class Demand:
    """What the actors of one role need at the same time.

    role: name, for messages.
    workers: how many actors.
    cpus, gpus: of each; fractions are allowed.
    """

    role: str
    workers: int
    cpus: float
    gpus: float = 0.0


def count_fitting(demand: Demand, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many workers of `demand` fit on `nodes` at once, whatever else runs there."""
    return sum(_fitting_on_node(demand, node) for node in nodes)


def check_demands(demands: Sequence[Demand], nodes: Sequence[Mapping[str, float]]) -> None:
    """Raise ResourceError naming what is there, asked and missing for each demand that does not fit."""
    problems = [_problem(demand, nodes) for demand in demands if count_fitting(demand, nodes) < demand.workers]
    if problems:
        raise ResourceError(problems)


def _fitting_on_node(demand: Demand, node: Mapping[str, float]) -> int:
    limits = [
        math.floor(node.get(kind, 0.0) / each + _EPSILON)
        for kind, each in (("CPU", demand.cpus), ("GPU", demand.gpus))
        if each > 0
    ]
    return min(limits, default=demand.workers)


def _problem(demand: Demand, nodes: Sequence[Mapping[str, float]]) -> str:
    asked = [("CPUs", demand.cpus, "CPU"), ("GPUs", demand.gpus, "GPU")]
    there = {kind: sum(node.get(kind, 0.0) for node in nodes) for _, _, kind in asked}
    wanted = " and ".join(f"{_number(each)} {name}" for name, each, _ in asked if each > 0)
    total = " and ".join(f"{_number(demand.workers * each)} {name}" for name, each, _ in asked if each > 0)
    have = " and ".join(f"{_number(there[kind])} {name}" for name, each, kind in asked if each > 0)
    lacking = [
        f"{_number(demand.workers * each - there[kind])} {name}"
        for name, each, kind in asked
        if demand.workers * each > there[kind] + _EPSILON
    ]
    fitting = count_fitting(demand, nodes)
    where = "this machine" if len(nodes) == 1 else f"{len(nodes)} nodes"
    missing = " and ".join(lacking) or f"room for {demand.workers - fitting} on any single node"
    return (
        f"{demand.role}: {demand.workers} workers with {wanted} each were asked for, {total} in all. "
        f"There: {have} on {where}, enough for {fitting}. Missing: {missing}. They would wait forever. "
        f"Lower {demand.role}.num_workers or what each worker takes, or run on a larger machine or cluster."
    )


def _number(value: float) -> str:
    return f"{value:g}"
