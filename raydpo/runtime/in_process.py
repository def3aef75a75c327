"""One actor in this process: what it is asked is done when its answer is read, so that a breakpoint in a loss works.

What comes in: classes and calls. What goes out: the same as from a process of its own, in the same order.
Decision: environment, threads and random state are the actor's while it works and are put back whenever it pauses, so that
a notebook is left as it was found. What a process boundary gives is given up, and said: a death is the driver's own, and a
hang cannot be ended; after the deadline it prints where it is.
"""

from __future__ import annotations

import faulthandler
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from raydpo.runtime.patience import NodePatience
from raydpo.runtime.place import Place, load_function
from raydpo.runtime.process_state import ProcessState
from raydpo.runtime.resources import Demand
from raydpo.runtime.stacks import Stacks
from raydpo.schema.pulse import listen

_SLACK = 0.05
"""Part of the deadline within which a second beat changes nothing: setting the alarm again starts a thread."""


class _Here:
    """An actor: its object, and what it changed in this process."""

    def __init__(self, kind: type) -> None:
        self.made = kind()
        self.state = ProcessState()
        self.streams: list[_Events] = []


class _Asked:
    hang_timeout_s: float | None = None

    def __init__(self, actor: _Here, method: str, arguments: tuple[Any, ...]) -> None:
        self.actor, self.method, self.arguments = actor, method, arguments

    def run(self) -> Any:
        if self.method == "prepare":
            payload, _, preload, *_ = self.arguments
            load_function(
                payload, {}, preload
            )  # its modules are imported with this process's own environment and threads
        with self.actor.state.active(), _alarm(self.hang_timeout_s):
            return getattr(self.actor.made, self.method)(*self.arguments)


class _Events(_Asked):
    """A generator that is run event by event."""

    events: Iterator[Any] | None = None

    def next(self) -> Any:
        with self.actor.state.active(), _alarm(self.hang_timeout_s):
            if self.events is None:
                self.events = iter(getattr(self.actor.made, self.method)(*self.arguments))
            try:
                return next(self.events)
            except StopIteration:
                self.actor.streams.remove(self)
                raise

    def close(self) -> None:
        if self.events is not None:
            with self.actor.state.active(), suppress(ValueError):  # another thread is in it, and leaves it by itself
                self.events.close()  # type: ignore[attr-defined]


class InProcess:
    """See `raydpo.runtime.backend.Actors`. For one actor: what two ask for would be done one after the other."""

    is_shared = True
    hint = "it runs in this process"

    def reserve(self, demand: Demand, patience: NodePatience) -> Sequence[Any]:
        return [None] * demand.workers

    def seat(self, demand: Demand, number: int) -> Any:
        return None

    def release(self, places: Sequence[Any]) -> None:
        pass

    def start(self, kind: type, demand: Demand, place: Any = None) -> _Here:
        return _Here(kind)

    def call(self, actor: _Here, method: str, *arguments: Any, hang_timeout_s: float | None = None) -> _Asked:
        asked = _Asked(actor, method, arguments)
        asked.hang_timeout_s = hang_timeout_s
        return asked

    def stream(
        self, actor: _Here, method: str, *arguments: Any, max_unread: int | None, hang_timeout_s: float
    ) -> _Events:
        stream = _Events(actor, method, arguments)
        stream.hang_timeout_s = hang_timeout_s
        actor.streams.append(stream)
        return stream

    def share(self, value: Any) -> Any:
        return value

    def wait(self, pending: Sequence[Any], timeout_s: float) -> list[Any]:
        return list(pending[:1])  # one: the next is not done before the first was read

    def result(self, call: _Asked, timeout_s: float | None = None) -> Any:
        return call.run()

    def next_event(self, stream: _Events) -> Any:
        return stream.next()

    def kill(self, actor: _Here) -> None:
        for stream in actor.streams:
            stream.close()
        actor.streams.clear()
        made, actor.made = actor.made, None
        if hasattr(made, "end"):  # the process goes on, so what it kept is closed
            with actor.state.active(), suppress(Exception):  # work that failed may have left it in any state
                made.end()

    @staticmethod
    def locate() -> Place:
        return Place("this machine", "this process", os.getpid())

    def stacks(self, ranks: Mapping[int, tuple[Place, Stacks]]) -> dict[int, str]:
        return {}

    def silences_s(self, ranks: Mapping[int, tuple[Place, Stacks]]) -> dict[int, float]:
        return {}

    def free(self) -> str:
        return "this process"


@contextmanager
def _alarm(hang_timeout_s: float | None) -> Iterator[None]:
    """Print the stack of all threads when the block takes longer without a beat; it goes on after that."""
    if hang_timeout_s is None:
        yield
        return

    set_at_s = -math.inf

    def set_again() -> None:
        nonlocal set_at_s
        if time.monotonic() - set_at_s < hang_timeout_s * _SLACK:
            return
        set_at_s = time.monotonic()
        with suppress(ValueError, AttributeError, OSError):  # no stream with a descriptor, no alarm
            faulthandler.dump_traceback_later(hang_timeout_s, file=sys.__stderr__ or sys.stderr)

    set_again()
    before = listen(set_again)
    try:
        yield
    finally:
        listen(before)
        faulthandler.cancel_dump_traceback_later()
