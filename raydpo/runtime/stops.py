"""Signals that ask a run to end: what is in work is brought to its next boundary and committed, then the run ends.

Comes in: SIGTERM and SIGINT of this process while a run is watched. Goes out: `Stopped`, raised in the main thread.
Decision: a kill anywhere loses nothing that is committed, so a signal ends a run at once; only a `deferred` block, whose
work of seconds would be lost, is given time to reach its boundary. A second signal, or the end of that time, ends it too:
the signal is sent again then, so that one whose exception somebody swallowed ends the run all the same.
Handlers are set after those of the runtime, whose own would end the process with a dump, and put back afterwards.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from types import FrameType

from raydpo.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def nothing() -> None:
    """For a block that comes to its boundary by itself, because it asks `requested`."""


@dataclass
class _Block:
    """on_request: tells the work to come to its boundary. committed: what is safe now, as a sentence."""

    on_request: Callable[[], None]
    committed: Callable[[], str] | None


@dataclass
class _SignalWatch:
    """grace_s: seconds that a deferred block gets. committed: what is safe, as a sentence, outside of a block that knows more.
    tells_all: inside of blocks, too. signum: of the first signal, 0 before it. is_over: a second one came."""

    grace_s: float
    committed: Callable[[], str]
    tells_all: bool
    signum: int = 0
    is_over: bool = False
    blocks: list[_Block] = field(default_factory=list)
    timer: threading.Timer | None = None

    def receive(self, signum: int, frame: FrameType | None) -> None:
        """The handler, in the main thread."""
        if self.signum:
            self.is_over = True
            raise self.stopped()
        self.signum = signum
        for block in self.blocks:
            block.on_request()
        self.timer = threading.Timer(self.grace_s, os.kill, (os.getpid(), signum))
        self.timer.daemon = True
        self.timer.start()
        if not self.blocks:
            raise self.stopped()

    def stopped(self) -> Stopped:
        """What is raised: says what is safe."""
        inside = [] if self.tells_all else [block.committed for block in self.blocks if block.committed is not None]
        return Stopped(self.signum, [self.committed, *inside][-1]())


_watch: _SignalWatch | None = None


@contextmanager
def watching(grace_s: float, committed: Callable[[], str] = str, *, tells_all: bool = False) -> Iterator[None]:
    """Inside, SIGTERM and SIGINT of this process raise `Stopped`. Nothing changes in a thread, or inside another watch.

    committed: what is safe, as a sentence, for a signal outside of deferred blocks. tells_all: for one inside of them, too.
    """
    global _watch
    if not _may_handle() or _watch is not None:
        yield
        return
    watch = _watch = _SignalWatch(grace_s, committed, tells_all)
    with handlers_kept():
        claim()
        try:
            yield
        finally:
            _watch = None
            if watch.timer is not None:
                watch.timer.cancel()


@contextmanager
def handlers_kept(handler: signal.Handlers | None = None) -> Iterator[None]:
    """Whatever the block does to the handlers of SIGNALS, they are put back. handler: set for the block; None: as they are.

    Nothing happens in a thread, which may set none.
    """
    if not _may_handle():
        yield
        return
    before = {each: signal.getsignal(each) for each in SIGNALS}
    try:
        if handler is not None:
            _handle(handler)
        yield
    finally:
        for each, kept in before.items():
            signal.signal(each, signal.SIG_DFL if kept is None else kept)


def claim() -> None:
    """Set our handlers, if a run is watched: the runtime calls it after it has started, as Ray sets its own."""
    if _watch is not None and _may_handle():
        _handle(_watch.receive)


def _handle(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> None:
    for each in SIGNALS:
        signal.signal(each, handler)


def _may_handle() -> bool:
    return threading.current_thread() is threading.main_thread()


def requested() -> int:
    """The signal that asked the run to end; 0: none."""
    return 0 if _watch is None else _watch.signum


def ask_to_stop() -> None:
    """End the watched run of this process as SIGTERM would: its work comes to the next boundary, is committed, and `Stopped` is
    raised. Where no run is watched (in a thread), `Stopped` is raised here: what was committed before is safe. Asking again
    does nothing.
    """
    if _watch is None:
        raise Stopped(signal.SIGTERM, "What was committed before is safe.")
    if not _watch.signum:
        _watch.receive(signal.SIGTERM, None)


def has_grace() -> bool:
    """Whether a signal asked the run to end, and work of other threads may still come to its boundary."""
    return _watch is not None and bool(_watch.signum) and not _watch.is_over


@contextmanager
def deferred(on_request: Callable[[], None] = nothing, committed: Callable[[], str] | None = None) -> Iterator[None]:
    """A block that a signal does not end at once: `on_request` is called, the block ends by itself, and `Stopped` is raised.

    on_request: called by the signal handler, so it may write a file and set a flag, and nothing that takes a lock.
    committed: what is safe, as a sentence; None: as outside of the block. In another thread than the watch's, `Stopped` is
    raised there.
    """
    watch = _watch
    if watch is None:
        yield
        return
    block = _Block(on_request, committed)
    watch.blocks.append(block)
    try:
        try:
            yield
        except Exception as error:  # what fails after the signal fails because of it: a launcher signals every process
            if not watch.signum:
                raise
            raise watch.stopped() from error
        if watch.signum:
            raise watch.stopped()
    finally:
        watch.blocks.remove(block)


def left_to_the_driver() -> AbstractContextManager[None]:
    """In an actor's process: a launcher that signals every process of a run does not end this one; the driver decides."""
    return handlers_kept(signal.SIG_IGN)
