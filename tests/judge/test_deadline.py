"""A deadline ends what can be ended where it is: a wait, a loop, a regular expression, code that catches everything."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable, Sequence

import pytest

from raydpo.judge import Verdict, judge_rows
from raydpo.judge.deadline import OutOfTime, bounded, within
from raydpo.judge.verdict import Row

S = 0.1


def wait() -> None:
    time.sleep(600)


def loop() -> None:
    while True:
        pass


def match() -> None:
    re.search("(a+)+$", "a" * 40 + "b")


def lock() -> None:
    threading.Event().wait()


def catch() -> None:
    while True:
        try:
            time.sleep(600)
        except Exception:  # noqa: BLE001 - as others do
            continue


@pytest.mark.parametrize("hang", [wait, loop, match, lock, catch])
def test_in_the_main_thread(hang: Callable[[], None]) -> None:
    before, (left_s, _) = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    with pytest.raises(OutOfTime):
        within(S, hang)
    assert signal.getsignal(signal.SIGALRM) is before
    now_s, _ = signal.getitimer(signal.ITIMER_REAL)
    assert left_s - 60 < now_s < left_s if left_s else now_s == 0, "the clock of the test itself"


def test_in_another_thread_it_is_left_behind() -> None:
    found: list[str] = []

    def run() -> None:
        try:
            within(S, lambda: threading.Event().wait(5))
        except OutOfTime:
            found.append("out of time")
        found.append(within(60, lambda: "in time"))
        with pytest.raises(ZeroDivisionError):
            within(60, lambda: 1 // 0)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert found == ["out of time", "in time"]


def test_what_is_in_time_is_as_it_was() -> None:
    assert within(60, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(60, lambda: 1 // 0)


def test_the_clock_of_somebody_else_goes_on() -> None:
    rung: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    left_s, _ = signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(OutOfTime):
            within(0.05, wait)
        deadline_s = time.monotonic() + 60
        while not rung and time.monotonic() < deadline_s:
            time.sleep(0.01)
    finally:
        signal.setitimer(signal.ITIMER_REAL, left_s)
        signal.signal(signal.SIGALRM, before)
    assert rung == [signal.SIGALRM]


def test_a_row_fails_alone() -> None:
    def judge(prompt: str, responses: list[str]) -> list[float]:
        if prompt == "wait":
            wait()
        return [1.0]

    rows: list[Row] = [("go", ["a"]), ("wait", ["a"]), ("go", ["a"])]
    reason = "no verdict within 0.1 s (judge.timeout_s); judge.function x:y was ended"
    expected = [Verdict((1.0,)), Verdict(None, reason), Verdict((1.0,))]
    assert judge_rows(bounded(judge, S, "judge.function x:y"), rows) == expected


def test_a_batch_has_the_time_of_all_its_rows() -> None:
    class Many:
        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

        def __call__(self, prompt: str, responses: list[str]) -> list[float]:
            raise AssertionError("rows are not asked one by one after a batch that was out of time")

        def many(self, rows: Sequence[Row]) -> list[Verdict]:
            time.sleep(self.seconds)
            return [Verdict((1.0,))] * len(rows)

    rows: list[Row] = [("p", ["a"])] * 4
    assert judge_rows(bounded(Many(0.0), S, "x:Y"), rows) == [Verdict((1.0,))] * 4
    failed = judge_rows(bounded(Many(600), 0.02, "x:Y"), rows)
    assert len(failed) == 4
    assert {verdict.reason for verdict in failed} == {
        "no verdict within 0.02 s (judge.timeout_s); x:Y was ended in a batch of 4 rows, with as much time for each"
    }
