"""How long a run waits for nodes that are not there yet, and what it says meanwhile.

Comes in: `run.wait_for_nodes_s` and who is told. Goes out: a wait that says every half minute what it waits for, and when it is
too late. Decision: what a role needs is asked of Ray as it is needed (pending actors and placement groups are what an
autoscaler looks at), so nothing is held while another role works, and nothing is asked any more once a driver is gone. Ray
does not say which nodes an autoscaler could start, so a run that waits is not refused at its start.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from raydpo.runtime.place import PLACEMENT_TIMEOUT_S

_SAY_EVERY_S = 30.0
_SAY_AFTER_S = 10.0


def _silent(text: str) -> None:
    pass


@dataclass(frozen=True)
class NodePatience:
    """wait_s: how long nodes may take that are not there when a role's turn comes; 0: what cannot fit is refused at the start.
    say: gets a line of progress now and then.
    """

    wait_s: float = 0.0
    say: Callable[[str], None] = _silent

    def for_nodes(self) -> Waiting:
        """A wait that starts now, for nodes; without patience for one that replaces a lost node."""
        return Waiting(self, self.wait_s or PLACEMENT_TIMEOUT_S)

    def for_places(self) -> Waiting:
        """The same for places on nodes: other jobs, and actors that still end, may hold what there is."""
        return Waiting(self, max(self.wait_s, PLACEMENT_TIMEOUT_S))


class Waiting:
    """A wait: ask `goes_on` again and again."""

    def __init__(self, patience: NodePatience, deadline_s: float) -> None:
        self._patience, self._deadline_s, self._since_s = patience, deadline_s, time.monotonic()
        self._next_s = self._since_s + _SAY_AFTER_S

    @property
    def waited_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._since_s

    def goes_on(self, what: Callable[[], str]) -> bool:
        """Whether it is not too late yet. what: for what is waited, a clause for the line of progress."""
        if self.waited_s > self._deadline_s:
            return False
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + _SAY_EVERY_S
            self._patience.say(f"{what()}; {self.waited_s:.0f} s of {self._deadline_s:g} s")
        return True
