"""Anonymous memory (RssAnon) of processes: of this one, or of everything that it starts, looked at every few milliseconds.

Comes in: nothing. Goes out: how far each grew above what it had at first. Decision: pages of mapped files are not counted. An
actor of a local session is forked from a process that has the imports, so what it has at first is what they take; the
price is that a module which it imports later counts as growth.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ACTORS = ("RankActor", "PoolActor", "PoolWorker")
_EVERY_S = 0.005


def anonymous_bytes(pid: int | str = "self") -> int:
    """RssAnon of a process. Raises OSError when it is gone, ValueError when it just ended."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"{pid} has no memory any more")


class Watched:
    """The largest RssAnon of this process while it is open. grown_bytes: how far that is above what it was at the start."""

    def __enter__(self) -> Watched:
        self._start = self._most = anonymous_bytes()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join()
        self.grown_bytes = max(self._most, anonymous_bytes()) - self._start

    def _look(self) -> None:
        while not self._is_over.wait(_EVERY_S):
            self._most = max(self._most, anonymous_bytes())


@contextmanager
def actors_grown() -> Iterator[dict[str, list[int]]]:
    """While it is open: kind of actor -> bytes by which each of them grew, the largest first. Filled at the end."""
    found: dict[str, list[int]] = {}
    seen: dict[int, tuple[str, int, int]] = {}
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(4 * _EVERY_S):
            for pid in _below(os.getpid()):
                with suppress(OSError, ValueError):
                    kind, size = Path(f"/proc/{pid}/comm").read_text().strip(), anonymous_bytes(pid)
                    if kind in ACTORS:
                        _, first, most = seen.get(pid, (kind, size, size))
                        seen[pid] = (kind, first, max(most, size))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        is_over.set()
        thread.join()
        for kind, first, most in seen.values():
            found[kind] = sorted([*found.get(kind, []), most - first], reverse=True)


def _below(pid: int) -> Iterator[int]:
    """Processes that `pid` started, and theirs."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, task.read_text().split()):
                yield child
                yield from _below(child)
