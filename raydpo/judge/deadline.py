"""A judge that is a program of others, under a deadline: a row that it does not finish in time has no scores.

Comes in: a judge, seconds. Goes out: a judge. Decision: a signal of the clock ends the call where it is, in a loop, a wait or
a regular expression, because nothing else reaches a thread that does not let go of the interpreter; signals reach the main
thread alone, so elsewhere the call runs in a thread that is left behind. Price: native code that never returns is not ended
here, but with its process; and a judge that uses SIGALRM itself goes without.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from raydpo.judge.verdict import Judge, NoVerdict, Row, Verdict

T = TypeVar("T")
_AGAIN_S = 1.0
_ASK_S = 0.2


class OutOfTime(BaseException):
    """The time is over. Not an Exception, so that a judge that catches all of those is ended, too."""


def within(seconds: float, work: Callable[[], T], is_ended: Callable[[], bool] = lambda: False) -> T:
    """What `work` returns. Raises OutOfTime when that takes longer, or, in another thread than the main one, when nobody waits
    for it any more (is_ended)."""
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer"):
        with _alarm(seconds):
            return work()
    return _in_thread(seconds, work, is_ended)


def bounded(judge: Judge, seconds: float, name: str) -> Judge:
    """`judge` with `seconds` for each row; a row that takes longer fails, and so do all of a batch that takes longer."""
    return _InTime(judge, seconds, name)


class _InTime:
    def __init__(self, judge: Judge, seconds: float, name: str) -> None:
        self._judge, self._seconds = judge, seconds
        self._reason = f"no verdict within {seconds:g} s (judge.timeout_s); {name:.120} was ended"
        if hasattr(judge, "many"):
            self.many = self._many

    def __call__(self, prompt: str, responses: list[str]) -> list[float]:
        try:
            return within(self._seconds, lambda: self._judge(prompt, responses))
        except OutOfTime:
            raise NoVerdict(self._reason) from None

    def _many(self, rows: Sequence[Row]) -> list[Verdict]:
        many: Callable[[Sequence[Row]], list[Verdict]] = self._judge.many  # type: ignore[attr-defined]
        try:
            return within(self._seconds * len(rows), lambda: many(rows))
        except OutOfTime:
            return [Verdict.failed(f"{self._reason} in a batch of {len(rows)} rows, with as much time for each")] * len(
                rows
            )


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    is_over = False

    def ring(number: int, frame: FrameType | None) -> None:
        if not is_over:
            raise OutOfTime

    handler = signal.signal(signal.SIGALRM, ring)
    started_s = time.monotonic()
    left_s, interval_s = signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_S)  # again, if it was caught
    try:
        yield
    finally:
        is_over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
        if left_s > 0:  # somebody else's clock
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, left_s - (time.monotonic() - started_s)), interval_s)


def _in_thread(seconds: float, work: Callable[[], T], is_ended: Callable[[], bool]) -> T:
    came: list[tuple[bool, Any]] = []

    def run() -> None:
        try:
            came.append((True, work()))
        except BaseException as error:  # noqa: BLE001 - it is raised where the work was asked for
            came.append((False, error))

    thread = threading.Thread(target=run, name="judge", daemon=True)
    thread.start()
    deadline_s = time.monotonic() + seconds
    while thread.is_alive() and (left_s := deadline_s - time.monotonic()) > 0 and not is_ended():
        thread.join(min(left_s, _ASK_S))
    if not came:
        raise OutOfTime
    is_answer, value = came[0]
    if not is_answer:
        raise value
    answer: T = value
    return answer
