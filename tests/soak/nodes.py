"""A Ray cluster of three nodes on this machine, of which two come and go: what the driver is told, and what can be taken
away.

Decision: each node has one CPU and a training takes two, so that it fits on what is left when one is lost, with as many
ranks. The head is never lost: its own loss is the end of the driver, which `test_kill` covers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from raydpo.runtime import session
from tests.runtime.ray_head import RayHead, power_off, ray_head

NUM_OTHERS = 2


class SoakNodes:
    """The nodes besides the head."""

    def __init__(self, head: RayHead) -> None:
        self.head = head
        self.others = [head.join(1)[0] for _ in range(NUM_OTHERS)]

    @property
    def are_missing(self) -> bool:
        """A node that ended at its start, as Ray may on a busy machine, is missing like one that was taken away."""
        self.others = [node for node in self.others if node.poll() is None]
        return len(self.others) < NUM_OTHERS

    def add(self) -> None:
        self.others.append(self.head.join(1)[0])

    def lose(self, place: int) -> None:
        """All processes of one at once, as when power goes."""
        power_off(self.others.pop(place % len(self.others)))

    def lose_raylet(self, place: int) -> None:
        """The raylet alone; what it started ends by itself."""
        node = self.others.pop(place % len(self.others))
        for below in psutil.Process(node.pid).children(recursive=True):
            if below.name().startswith("raylet"):
                below.kill()
        node.wait(300)


@contextmanager
def three_nodes() -> Iterator[SoakNodes]:
    """This process joins the cluster, too, to see which nodes it has; its environment names it from then on."""
    with ray_head(1) as head:
        os.environ.update({name: text for name, text in head.driver_environment().items() if name.startswith("RAY_")})
        with session(kind="ray"):
            yield SoakNodes(head)
