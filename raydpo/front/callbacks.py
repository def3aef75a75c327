"""Callbacks that watch a run and may end it.

Comes in: the events of a run, and the caller's functions. Goes out: nothing, or a request to stop, which the run follows as it
follows SIGTERM: the step in work is committed, and the same call goes on from it.
Decision: what a callback raises, other than StopRun, ends the run with that error: a callback that is broken is no callback.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from raydpo.errors import ConfigError
from raydpo.runtime import ask_to_stop
from raydpo.schema.events import Event
from raydpo.screen import Screen

Callback = Callable[[Event], Any]
"""Called with every event, in this process. It returns None to go on, or "stop"."""


class StopRun(Exception):
    """Raised by a callback: end the run after its step. Its text is kept as `run.stopped_by`."""


class Callbacks:
    """An observer of a run that asks `functions`. stopped_by: who ended the run and why; empty where nobody did."""

    def __init__(self, functions: Callback | Sequence[Callback], *, progress: bool = True) -> None:
        given = tuple(functions) if isinstance(functions, Sequence) else (functions,)
        if wrong := [one for one in given if not callable(one)]:
            raise ConfigError(
                f"callbacks: {wrong[0]!r} cannot be called; allowed: functions of one event that return None or 'stop'. "
                "Nothing was started."
            )
        self._functions = given
        self._screen = Screen() if progress else None
        self.stopped_by = ""

    def shown(self) -> AbstractContextManager[Any]:
        """Around a run: its progress on the screen."""
        return self._screen if self._screen is not None else nullcontext()

    def __call__(self, event: Event) -> None:
        if self._screen is not None:
            self._screen(event)
        asked = [text for text in (_asked(function, event) for function in self._functions) if text]
        if asked and not self.stopped_by:
            self.stopped_by = asked[0]
            ask_to_stop()


def _asked(function: Callback, event: Event) -> str:
    """Why `function` ends the run; empty where it does not."""
    name = getattr(function, "__name__", type(function).__name__)
    try:
        answer = function(event)
    except StopRun as stop:
        return f"{name}: {stop}" if str(stop) else name
    if answer in (None, "stop"):
        return name if answer else ""
    raise ConfigError(f"callbacks: {name} returned {answer!r}; allowed: None, to go on, or 'stop'.")
