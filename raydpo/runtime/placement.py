"""Where the actors of a role may go, in Ray's words: strategy, custom resources, labels of nodes.

Comes in: what a section of the config says. Goes out: which nodes match, and how many of a role's workers they hold.
Decision: Ray's own names and values, handed to Ray as they are; they are read here only to say early that nothing fits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

NODE_LABEL = "ray.io/node-id"
"""Label that Ray gives to each node by itself."""
Strategy = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]


@dataclass(frozen=True)
class Placement:
    """strategy: PACK: few nodes; SPREAD: many; STRICT_PACK: one node; STRICT_SPREAD: a node each (the strict ones for gangs).
    resources: custom resources that each actor takes, such as {"nvme": 1}.
    label_selector: labels of the nodes, such as {"market-type": "!spot"}; values as of Ray, "in(a, b)" and "!in(a, b)" too.
    """

    strategy: Strategy = "PACK"
    resources: Mapping[str, float] = field(default_factory=dict)
    label_selector: Mapping[str, str] = field(default_factory=dict)

    def takes(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with `labels` matches the selector."""
        return all(_matches(wanted, labels.get(key)) for key, wanted in self.label_selector.items())

    def without(self, node_id: str) -> Placement | None:
        """The same, but for one more node; None where the selector names nodes itself."""
        wanted = self.label_selector.get(NODE_LABEL, "!in()")
        if not wanted.startswith("!in("):
            return None
        others = [each.strip() for each in wanted.removeprefix("!in(").rstrip(")").split(",") if each]
        selector = {**self.label_selector, NODE_LABEL: f"!in({', '.join([*others, node_id])})"}
        return replace(self, label_selector=selector)

    def limit(self, fitting: list[int]) -> int:
        """Workers that can have a place, of those that fit on each node alone."""
        if self.strategy == "STRICT_PACK":
            return max(fitting, default=0)
        return sum(min(1, number) for number in fitting) if self.strategy == "STRICT_SPREAD" else sum(fitting)


ANYWHERE = Placement()


def _matches(wanted: str, label: str | None) -> bool:
    listed = re.fullmatch(r"!?in\((.*)\)", wanted)
    values = [value.strip() for value in listed[1].split(",")] if listed else [wanted.removeprefix("!")]
    return (label not in values) if wanted.startswith("!") else (label in values)
