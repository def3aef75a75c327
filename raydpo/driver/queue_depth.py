"""How full a role's queue was: requests that wait, and requests in work, as means over time and at most.

Comes in: both numbers whenever they may have changed. Goes out: figures of the time since `begin`. Decision: a number holds
until the next one comes, so that it does not matter in which thread or process the work is done.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

WAITING, IN_WORK = "requests_waiting", "requests_in_work"


class QueueDepth:
    """now_s: a clock."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s, self._lock = now_s, threading.Lock()
        self.begin()

    def begin(self) -> None:
        """What was seen until now is of something else."""
        with self._lock:
            self._held: tuple[float, int, int] | None = None  # since when, waiting, in work
            self._seconds = 0.0
            self._sums, self._most = [0.0, 0.0], [0, 0]

    def seen(self, num_waiting: int, num_in_work: int) -> None:
        """So many from now on. Without any of either, the time until there are some counts for nothing."""
        with self._lock:
            now_s = self._now_s()
            if self._held is not None:
                since_s, *numbers = self._held
                self._seconds += now_s - since_s
                self._sums = [
                    total + number * (now_s - since_s) for total, number in zip(self._sums, numbers, strict=True)
                ]
            self._held = (now_s, num_waiting, num_in_work) if num_waiting or num_in_work else None
            self._most = [max(both) for both in zip(self._most, (num_waiting, num_in_work), strict=True)]

    def read(self) -> dict[str, float]:
        """ "requests_waiting/mean", "requests_waiting/most", and of those in work; nothing where there were none."""
        with self._lock:
            if not self._seconds:
                return {}
            rows = zip((WAITING, IN_WORK), self._sums, self._most, strict=True)
            return {
                f"{name}/{kind}": value
                for name, total, most in rows
                for kind, value in (("mean", total / self._seconds), ("most", float(most)))
            }
