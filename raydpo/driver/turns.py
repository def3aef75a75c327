"""Whose turn it is, so that time counts for one phase at a moment, though two roles may work in one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext


class Turns:
    """phase: name -> a block whose time counts for it. Nothing counts before the first turn and after `end`."""

    def __init__(self, phase: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext()) -> None:
        self._phase, self._open, self._name = phase, ExitStack(), ""

    def to(self, name: str) -> None:
        """From now on time counts for `name`."""
        if name != self._name:
            self._open.close()
            self._open.enter_context(self._phase(name))
            self._name = name

    def end(self) -> None:
        self._open.close()
        self._name = ""

    @contextmanager
    def taken(self, name: str) -> Iterator[None]:
        """The block is a turn of `name`, within that of another."""
        before = self._name
        self.to(name)
        try:
            yield
        finally:
            self.to(before) if before else self.end()
