"""Where the actors of a role may run on a cluster: the section `scheduling` of every role.

Comes in: Ray's own words. Goes out: validated values. Decision: the names of Ray's placement groups and actor options, so that
its documentation says what they mean; the local runtime has no nodes and refuses them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from raydpo.config.section import Section

_OWN_KEYS = {"CPU": "cpus_per_worker", "GPU": "gpus_per_worker"}
_NAME = r"[a-zA-Z0-9](?:[a-zA-Z0-9._-]*[a-zA-Z0-9])?"
_LABEL_KEY = re.compile(rf"(?:{_NAME}/)?{_NAME}")
_LABEL_VALUE = re.compile(rf"!?{_NAME}|!?in\({_NAME}(?:, ?{_NAME})*\)")


class SchedulingSection(Section):
    strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """PACK: on as few nodes as have room. SPREAD: on as many as there are. STRICT_PACK: all on one node, or not at all.
    STRICT_SPREAD: each on a node of its own, or not at all. The strict ones are for `train`, whose ranks start together."""
    resources: dict[str, float] = Field(default={})
    """Custom resources that each worker takes, as nodes were started with (`ray start --resources`): {nvme: 1}."""
    label_selector: dict[str, str] = Field(default={})
    """Labels that a node must have: {ray.io/accelerator-type: H100, market-type: "!spot"}. Values are Ray's: a, "!a",
    "in(a, b)", "!in(a, b)"."""

    def clashes(self) -> Iterator[str]:
        for name, number in self.resources.items():
            if name in _OWN_KEYS:
                yield f"resources: {name} has a key of its own; set {_OWN_KEYS[name]}"
            elif not number > 0 or (number > 1 and number != int(number)):
                yield f"resources: {name}: {number:g}; a part of one (0.5) or a whole number is allowed"
        for key, value in self.label_selector.items():
            if not _LABEL_KEY.fullmatch(key):
                yield f"label_selector: {key!r} is no key of a label, such as market-type or example.com/zone"
            if not _LABEL_VALUE.fullmatch(value):
                yield f'label_selector: {key}: {value!r}; allowed: a, "!a", "in(a, b)", "!in(a, b)"'
