"""How far a judge is: the rows of a batch, or the questions to its server, for whoever waits.

Comes in: what happens to each request, from many threads. Goes out: `Asked`, one at a time: each request that is sent again,
and otherwise at most one a second. Decision: here nothing is left unsaid but progress; who shows it to a person, and knows
all servers' workers, decides how often.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

EVERY_S = 1.0


@dataclass(frozen=True)
class Asked:
    """How far a batch of questions is.

    done, total: requests.
    num_again: how often one of them was sent again.
    line: why one is sent again now; empty: none is.
    """

    done: int
    total: int
    num_again: int
    line: str = ""


@dataclass(frozen=True)
class Judged:
    """How many rows of a batch have their verdict."""

    num_rows: int


def unheard(asked: Asked) -> None:
    """Nobody listens."""


class Asking:
    """Counts one batch of `total` requests to `url` and tells. is_over: set, nobody waits for another try."""

    def __init__(self, url: str, total: int, tell: Callable[[Asked], None]) -> None:
        self._url, self._total, self._tell = url, total, tell
        self._lock = threading.Lock()
        self._done = self._num_again = 0
        self._told_s = time.monotonic()
        self.is_over = threading.Event()

    def finished(self) -> None:
        """A request has its reply or its error."""
        with self._lock:
            self._done += 1
            if self._done == self._total or time.monotonic() - self._told_s >= EVERY_S:
                self._say("")

    def tried_again(self, why: str) -> None:
        """A request will be sent again."""
        with self._lock:
            self._num_again += 1
            self._say(f"{self._url}: {why}")

    def _say(self, line: str) -> None:
        self._told_s = time.monotonic()
        self._tell(Asked(self._done, self._total, self._num_again, line))
