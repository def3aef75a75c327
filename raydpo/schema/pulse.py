"""A sign of life from the middle of long work, for whoever watches over the process.

Comes in: `beat()`, called by code that works on one item for long, between its batches. Goes out: a call of what this process
listens with, nothing where nobody does.
Decision: a global of the process and no argument, because what beats is deep in engines that know nothing of actors.
"""

from __future__ import annotations

from collections.abc import Callable

Listener = Callable[[], None]

_listener: Listener | None = None


def beat() -> None:
    """Say that the work goes on. Costs next to nothing; call it for each batch, not for each token."""
    if _listener is not None:
        _listener()


def listen(listener: Listener | None) -> Listener | None:
    """Call `listener` at each beat from now on (None: nothing). Returns what was called before."""
    global _listener
    before, _listener = _listener, listener
    return before
