"""How long each role of a run worked, and for which share of the time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ROLES = ("generate", "judge", "train")


class Busy:
    """Seconds of work by role, of this process's attempt. What was committed before costs nothing and counts nothing."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._seconds = dict.fromkeys(ROLES, 0.0)
        self._lock = threading.Lock()

    def add(self, role: str, seconds: float) -> None:
        with self._lock:
            self._seconds[role] += seconds

    @contextmanager
    def working(self, role: str) -> Iterator[None]:
        """Count the time of the block."""
        began_s = time.monotonic()
        try:
            yield
        finally:
            self.add(role, time.monotonic() - began_s)

    def report(self, num_generators: int) -> dict[str, Any]:
        """wall_s; busy_s by role; busy_share by role: of the wall time, of generators also of their number."""
        wall_s = time.monotonic() - self._began_s
        workers = {"generate": num_generators}
        shares = {role: seconds / (wall_s * workers.get(role, 1)) for role, seconds in self._seconds.items()}
        return {"wall_s": wall_s, "busy_s": dict(self._seconds), "busy_share": shares}
