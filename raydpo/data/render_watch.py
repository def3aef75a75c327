"""A bound on the CPU time and the memory of one rendering, in whichever thread it runs.

Comes in: a function. Goes out: what it returns, or Overtime, raised inside it. Decision: one thread looks twenty times a second
at those that render, and asks the interpreter to raise in one that used too much; signals would work in the main thread alone,
and a process for each rendering would cost more than the rendering. Price: a lock taken twice for each, under a microsecond,
and that a single operation of the interpreter's own C code is not cut short: template_bounds.py bounds these.
"""

from __future__ import annotations

import ctypes
import os
import resource
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

MOST_CPU_S = 2.0
"""Of one rendering: a few thousand times what one of a long conversation takes."""
MOST_GROWTH_BYTES = 384 << 20
_LOOK_S = 0.05
_IDLE_LOOKS = 200

T = TypeVar("T")


class Overtime(BaseException):
    """A rendering took too much. No Exception, so that nothing on the way takes it for one of its own."""


@dataclass(eq=False)
class _Rendering:
    """cpu_s, rss_bytes: as first seen by the watch. is_over: it was told to stop."""

    thread: int
    cpu_s: float | None = None
    rss_bytes: int = 0
    is_over: bool = False


class _Watch:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now: set[_Rendering] = set()
        self._is_watching = False

    def begin(self) -> _Rendering:
        rendering = _Rendering(threading.get_ident())
        with self._lock:
            self._now.add(rendering)
            if not self._is_watching:
                self._is_watching = True
                threading.Thread(target=self._look_on, name="rendering-watch", daemon=True).start()
        return rendering

    def end(self, rendering: _Rendering) -> None:
        while True:
            try:
                with self._lock:
                    self._now.discard(rendering)
                if rendering.is_over:
                    _hear(rendering.thread)
                return
            except Overtime:
                continue  # heard only here: once more, now that nobody tells it again

    def _look_on(self) -> None:
        num_idle = 0
        while num_idle < _IDLE_LOOKS:
            time.sleep(_LOOK_S)
            with self._lock:
                num_idle = 0 if self._now else num_idle + 1
                for rendering in self._now:
                    _look(rendering)
                self._is_watching = num_idle < _IDLE_LOOKS


def _look(rendering: _Rendering) -> None:
    cpu_s, rss_bytes = _cpu_s(rendering.thread), _rss_bytes()
    if rendering.cpu_s is None:
        rendering.cpu_s, rendering.rss_bytes = cpu_s, rss_bytes
    elif cpu_s - rendering.cpu_s > MOST_CPU_S or rss_bytes - rendering.rss_bytes > MOST_GROWTH_BYTES:
        rendering.is_over = True
        _tell(rendering.thread)


def _tell(thread: int) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Overtime))


def _hear(thread: int) -> None:
    """Let this thread, which was told and may not have heard, hear it here, so that it does not later. To take it back would
    leave the interpreter with a mark that something is to be raised; under a trace function it looks for it without end."""
    with suppress(Overtime):
        _tell(thread)
        while True:
            pass


def _cpu_s(thread: int) -> float:
    """CPU seconds of a thread, or seconds of any clock where that is not known."""
    try:
        return time.clock_gettime(time.pthread_getcpuclockid(thread))
    except (AttributeError, OSError):
        return time.monotonic()


def _rss_bytes() -> int:
    """Memory of this process, 0 where that is not known."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


_watch = _Watch()


def _anew() -> None:
    global _watch
    _watch = _Watch()  # a child of fork has neither the thread nor the holder of the lock


os.register_at_fork(after_in_child=_anew)


def within_bounds(render: Callable[[], T]) -> T:
    """What `render` returns. Raises Overtime when it takes more than `MOST_CPU_S` or `MOST_GROWTH_BYTES`."""
    rendering = _watch.begin()
    try:
        return render()
    finally:
        _watch.end(rendering)
