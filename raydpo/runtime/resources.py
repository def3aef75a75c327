"""What roles ask for, what the nodes have, and whether the one fits into the other.

What comes in: a Demand a role and the nodes, their resources in Ray's words ({"CPU": 8.0, "GPU": 1.0, ...}).
What goes out: nothing, or one ResourceError with a sentence for every role that can never be placed.
Decision: roles run one after the other, so each demand is compared alone with all there is; what other jobs hold at
the moment is not subtracted, because it comes back. Workers are fitted node by node: 3 CPUs twice hold no third
worker of 2 CPUs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from raydpo.errors import ResourceError
from raydpo.runtime.placement import ANYWHERE, Placement

_EPSILON = 1e-6
"""Ray counts in steps of 1e-4; this only absorbs the rounding of the division."""


@dataclass(frozen=True)
class Node:
    """A node that stays. resources, labels: in Ray's words."""

    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Demand:
    """What the actors of one role need at the same time.

    role: name, for messages.
    workers: how many actors.
    cpus, gpus: of each; fractions are allowed, parts of one GPU, not of two.
    placement: on which nodes, and what else each takes.
    """

    role: str
    workers: int
    cpus: float
    gpus: float = 0.0
    placement: Placement = ANYWHERE

    @property
    def each(self) -> dict[str, float]:
        """What one worker takes, in Ray's words."""
        asked = {"CPU": self.cpus, "GPU": self.gpus, **self.placement.resources}
        return {kind: number for kind, number in asked.items() if number > 0}


def count_fitting(demand: Demand, nodes: Sequence[Node]) -> int:
    """How many workers of `demand` fit on `nodes` at once, whatever else runs there."""
    matching = [node for node in nodes if demand.placement.takes(node.labels)]
    return demand.placement.limit([_fitting_on_node(demand, node) for node in matching])


def check_demands(demands: Sequence[Demand], nodes: Sequence[Node]) -> None:
    """Raise ResourceError naming what is there, asked and missing for each demand that does not fit."""
    problems = [_problem(demand, nodes) for demand in demands if count_fitting(demand, nodes) < demand.workers]
    if problems:
        raise ResourceError(problems)


def _fitting_on_node(demand: Demand, node: Node) -> int:
    limits = []
    for kind, each in demand.each.items():
        there = node.resources.get(kind, 0.0)
        is_part = kind == "GPU" and each < 1  # two halves of different GPUs make no third of 0.7
        limits.append(int(there) * _times(1.0, each) if is_part else _times(there, each))
    return min(limits, default=demand.workers)


def _times(there: float, each: float) -> int:
    return math.floor(there / each + _EPSILON)


def _problem(demand: Demand, nodes: Sequence[Node]) -> str:
    matching = [node for node in nodes if demand.placement.takes(node.labels)]
    there = {kind: sum(node.resources.get(kind, 0.0) for node in matching) for kind in demand.each}
    total = {kind: demand.workers * each for kind, each in demand.each.items()}
    lacking = {kind: total[kind] - there[kind] for kind in total if total[kind] > there[kind] + _EPSILON}
    fitting = count_fitting(demand, nodes)
    missing = amounts(lacking) if lacking else _room(demand, fitting)
    return (
        f"{demand.role}: {demand.workers} workers with {amounts(demand.each)} each were asked for, {amounts(total)} in all. "
        f"There: {amounts(there)} on {_where(demand, nodes, matching)}, enough for {fitting}. Missing: {missing}. They would "
        f"wait forever. Lower {demand.role}.num_workers or what each worker takes, or run on a larger machine or cluster."
    )


def _room(demand: Demand, fitting: int) -> str:
    strategy = demand.placement.strategy
    if strategy == "STRICT_SPREAD":
        return f"{demand.workers - fitting} nodes with room for one (strategy: STRICT_SPREAD)"
    text = f"room for {demand.workers - fitting} on any single node"
    return text + " beside the others (strategy: STRICT_PACK)" * (strategy == "STRICT_PACK")


def _where(demand: Demand, nodes: Sequence[Node], matching: Sequence[Node]) -> str:
    if selector := demand.placement.label_selector:
        wanted = ", ".join(f"{key}: {value}" for key, value in selector.items())
        return f"the {len(matching)} of {len(nodes)} nodes with the labels {wanted}"
    return "this machine" if len(nodes) == 1 else f"{len(nodes)} nodes"


def amounts(numbers: Mapping[str, float]) -> str:
    """ "2 CPUs and 1 GPUs"."""
    names = {"CPU": "CPUs", "GPU": "GPUs"}
    return " and ".join(f"{number:g} {names.get(kind, kind)}" for kind, number in numbers.items())
