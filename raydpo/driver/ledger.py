"""What a run of rounds started and loaded, by role: roles that stand cost the same for any number of rounds.

Comes in: that an actor began, that one loaded a model, that weights came into one in place. Goes out: the numbers for the
summary. Decision: an actor in this process counts as one that began, so that numbers are the same on every runtime; an engine's
own child processes are not counted, because nobody outside of the engine knows them.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any


class Ledger:
    """Of this process's attempt. Roles are counted in any thread, and in the order in which they come first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._starts, self._loads, self._updates = Counter[str](), Counter[str](), Counter[str]()
        self._standing = dict[str, bool]()
        self._yielding = dict[str, Any]()

    def started(self, role: str, number: int = 1) -> None:
        """Actors of a role began."""
        self._add(self._starts, role, number)

    def loaded(self, role: str, number: int = 1) -> None:
        """Actors of a role loaded a model from its folder, into a model that they made for it."""
        self._add(self._loads, role, number)

    def updated(self, role: str, number: int = 1) -> None:
        """Actors of a role took new weights into the model that they had."""
        self._add(self._updates, role, number)

    def stands(self, role: str, is_so: bool) -> None:
        """Whether a role begins once and lives to the end of the run, or begins for each of its turns."""
        with self._lock:
            self._standing[role] = is_so

    def yields(self, role: str, how: str, why: str) -> None:
        """What a role does with its devices while others need them, and why."""
        with self._lock:
            self._yielding[role] = {"how": how, "why": why, "sleeps": 0, "wakes": 0, "stops": 0}

    def yielded(self, role: str, kind: str, number: int) -> None:
        """Actors of a role did it. kind: sleeps, wakes or stops."""
        with self._lock:
            self._yielding[role][kind] += number

    def at_place(self, role: str, *, loads: bool) -> Callable[[object], None]:
        """What a pool calls with the place of each of its actors. loads: whether each loads a model as it begins."""

        def placed(_: object) -> None:
            self.started(role)
            self.loaded(role, int(loads))

        return placed

    def report(self) -> dict[str, Any]:
        """standing, starts, model_loads, updates_in_place and, where one was said, yielding, each by role."""
        with self._lock:
            found = {"starts": self._starts, "model_loads": self._loads, "updates_in_place": self._updates}
            counted = {
                name: {role: number for role, number in counts.items() if number} for name, counts in found.items()
            }
            said = {"yielding": {role: dict(each) for role, each in self._yielding.items()}} if self._yielding else {}
            return {"standing": dict(self._standing), **counted, **said}

    def _add(self, counts: Counter[str], role: str, number: int) -> None:
        with self._lock:
            counts[role] += number
