"""The screen: what is shown, how often, and that it can never stop a run."""

from __future__ import annotations

import io
import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest

import raydpo
from raydpo.schema.events import Advanced, Note, StageDone, StageStarted
from raydpo.screen import Screen, StageState, duration, print_summary, printable, summary_lines

SUMMARY = {
    "run_dir": "runs/first",
    "exact_match": {"before": 0.31, "after": 0.785},
    "eval": {
        "first": {"eval/loss": 0.6931, "eval/rewards/accuracies": 0.5},
        "last": {"eval/loss": 0.5931, "eval/rewards/accuracies": 0.7125},
    },
    "data": {"lines_read": 11000, "pairs_used": 10900, "quarantined": {"empty_answer": 40, "identical_answers": 60}},
    "reference": {"rows": 21800, "rows_scored": 3, "forwards": 2},
    "train": {"steps": 560},
}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def lines(out: io.StringIO) -> list[str]:
    return out.getvalue().splitlines()


def test_plain_lines_are_calm() -> None:
    out, clock = io.StringIO(), Clock()
    with Screen(out, every_s=5, clock=clock) as screen:
        assert screen.plain
        screen(StageStarted("train", 100, "steps"))
        for step in range(1, 101):
            clock.now += 0.5
            screen(Advanced("train", step, {"loss": 0.5, "rewards/margins": 0.25, "grad_norm": 9.0}))
        screen(StageDone("train", "100 steps"))
    shown = lines(out)
    assert shown[0] == "train: 100 steps"
    assert shown[-1] == "train: 100 steps (50s)"
    assert len(shown) == 2 + 10
    assert shown[1] == "train: 10/100 steps  2.0/s  45s left  margins 0.25  loss 0.5"


def test_plain_lines_thin_out_in_a_long_stage() -> None:
    """A notebook and the log of a job get lines; of ten hours it would be 7,200, as many in the second half as in the first."""
    out, clock = io.StringIO(), Clock()
    screen = Screen(out, every_s=5, clock=clock)
    screen(StageStarted("train", 36_000, "steps"))
    halves = []
    for half in range(2):
        for step in range(18_000):
            clock.now += 1
            screen(Advanced("train", 18_000 * half + step + 1))
        halves.append(len(lines(out)))
    assert halves[0] < 150
    assert halves[1] - halves[0] < 20
    assert "\x1b" not in out.getvalue()


def test_notes_are_lines_and_warnings_say_so() -> None:
    out = io.StringIO()
    screen = Screen(out)
    screen(Note("info", "pairs.jsonl: TRL standard [bold]"))
    screen(Note("warning", "margins stay flat"))
    assert lines(out) == ["pairs.jsonl: TRL standard [bold]", "warning: margins stay flat"]


def test_nothing_to_do_and_unknown_totals() -> None:
    out, clock = io.StringIO(), Clock()
    screen = Screen(out, every_s=1, clock=clock)
    screen(StageStarted("reference", 0, "rows"))
    screen(StageDone("reference", "all in the cache"))
    screen(StageStarted("data", None, "lines"))
    for done in (1000, 3000):
        clock.now += 2
        screen(Advanced("data", done))
    assert lines(out) == [
        "reference: all in the cache (0s)",
        "data: counting lines",
        "data: 1,000 lines",
        "data: 3,000 lines  1,000/s",
    ]


def test_a_resumed_stage_does_not_boast() -> None:
    state = StageState(StageStarted("train", 1000, "steps"), 0.0)
    state.advance(Advanced("train", 501), 10.0)
    assert state.rate() is None
    assert state.left(10.0) == ""
    state.advance(Advanced("train", 511), 20.0)
    assert state.rate() == 1.0
    assert state.left(20.0) == "8m 09s left"


def test_the_rate_is_of_the_last_minute() -> None:
    state = StageState(StageStarted("train", 1000, "steps"), 0.0)
    for second in range(300):
        state.advance(Advanced("train", 10 * second if second < 100 else 1000 + second), float(second))
    assert state.rate() == pytest.approx(1.0)


def test_an_event_without_its_start_is_shown_too() -> None:
    out, clock = io.StringIO(), Clock()
    screen = Screen(out, every_s=0, clock=clock)
    screen(Advanced("late", 3))
    screen(StageDone("unknown", "done"))
    assert lines(out)[-1] == "unknown: done"
    assert any("3" in line for line in lines(out))


def test_text_from_data_cannot_drive_the_terminal() -> None:
    assert printable("a\x1b[31mb\r\ud800é", "ascii") == "a\\x1b[31mb\\r\\ud800\\xe9"
    assert printable("é\nß") == "é\nß"


def test_a_closed_stream_stops_nothing() -> None:
    out = io.StringIO()
    screen = Screen(out)
    out.close()
    screen(Note("info", "nobody reads this"))
    screen(StageStarted("train", 1, "steps"))


def test_a_pipe_without_reader_stops_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", closefd=True) as out:
        with Screen(out) as screen:
            screen(Note("info", "nobody reads this"))
            screen(Note("info", "nor this"))
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0s"), (8.4, "8s"), (59.6, "1m 00s"), (125, "2m 05s"), (11400, "3h 10m")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_summary() -> None:
    out = io.StringIO()
    print_summary(SUMMARY, out)
    shown = [" ".join(line.split()) for line in lines(out)]
    assert "exact match before after change" in shown
    assert "held-out prompts 31.0% 78.5% +47.5 points" in shown
    accuracies = shown.index("rewards/accuracies 0.5000 0.7125 +0.2125")
    assert shown[accuracies + 1] == "loss 0.6931 0.5931 -0.1000"
    quarantined = shown.index("data 11,000 lines read, 10,900 used, 100 quarantined:")
    assert shown[quarantined + 1 : quarantined + 3] == ["60 identical_answers", "40 empty_answer"]
    assert "reference 21,800 rows, 3 scored now in 2 forwards" in shown
    assert "train 560 steps" in shown
    assert shown[-1] == "run directory runs/first"


def test_summary_shows_what_there_is() -> None:
    assert summary_lines({}) == []
    only_last = summary_lines({"eval": {"last": {"eval/loss": 0.5, "eval/note": "x"}}})
    assert [line.split() for line in only_last] == [["held-out", "value"], ["loss", "0.5000"], []]
    assert summary_lines({"data": {"lines_read": 3, "pairs_used": 3, "quarantined": {}}})[0].endswith("0 quarantined")


DEMO = """
import time
from raydpo.schema.events import *
from raydpo.screen import Screen
with Screen() as screen:
    assert not screen.plain
    screen(StageStarted("train", 200, "steps"))
    for step in range(1, 13):
        screen(Advanced("train", step, {"loss": 0.6, "rewards/margins": 0.125}))
        time.sleep(0.1)
    screen(Note("warning", "margins stay flat"))
    screen(StageDone("train", "12 steps"))
    print("a library prints")
"""


def test_on_a_terminal_of_100_columns() -> None:
    """The display in a pseudo-terminal: a bar with figures, the warning and the last line stay."""
    master, slave = pty.openpty()
    root = str(Path(raydpo.__file__).parents[1])
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30", "PYTHONPATH": root}
    with subprocess.Popen([sys.executable, "-c", DEMO], stdout=slave, stderr=slave, env=env) as child:
        os.close(slave)
        seen = b""
        waiting = select.poll()  # select() knows no file numbers over 1,023, and a worker of the suite may have them
        waiting.register(master, select.POLLIN)
        while waiting.poll(120_000):
            try:
                part = os.read(master, 65536)
            except OSError:
                break
            if not part:
                break
            seen += part
    os.close(master)
    text = seen.decode()
    assert child.returncode == 0, text
    for words in ("/200 steps", "━", "margins 0.125  loss 0.6", "left", "margins stay flat", "a library prints"):
        assert words in text
    assert "Traceback" not in text
