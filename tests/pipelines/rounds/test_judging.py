"""Judges in actors: they stand until the end, and make room where others need what they hold."""

from __future__ import annotations

import itertools
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from raydpo.config.round_sections import JudgeSection
from raydpo.driver.judge_lots import JudgeLots
from raydpo.driver.judge_progress import LINE_EVERY_S, JudgeProgress
from raydpo.driver.judges import Judging
from raydpo.errors import JudgeError, WorkerError
from raydpo.generate.engine import EngineSpec
from raydpo.judge.asked import Asked, Judged
from raydpo.judge.verdict import Row, Verdict
from raydpo.models.resolve import ResolvedModel
from raydpo.rundir.piece import Piece
from raydpo.schema.events import Advanced, Event, Note, StageDone
from tests.judge.servers import longer, serving


def whose(prompt: str, responses: list[str]) -> list[float]:
    """Scores by which a test knows the process that gave them."""
    return [float(os.getpid())] * len(responses)


def judge_of(tmp_path: Path, *, is_colocated: bool = True) -> Judging:
    section = JudgeSection(kind="function", function=f"{__name__}:whose")
    return Judging(None, section, EngineSpec(str(tmp_path)), is_colocated=is_colocated)


def judged(judging: Judging, folder: Path, lots: list[list[Row]]) -> list[dict[str, Any]]:
    """Rows of a piece of its own."""
    piece = Piece(folder / f"scores-{len(list(folder.glob('scores-*')))}", [])
    judging.judge(piece, JudgeLots.of(lots), lambda event: None)
    return list(piece.rows())


def pids(judging: Judging, folder: Path) -> set[float]:
    return {row["scores"][0] for row in judged(judging, folder, [[("a", ["b"])]])}


def test_the_actors_of_a_judge_are_started_once(tmp_path: Path, processes: None) -> None:
    judging = judge_of(tmp_path)
    first, second = pids(judging, tmp_path), pids(judging, tmp_path)
    assert len(first) == 1
    assert first == second
    judging.stop()
    with pytest.raises(WorkerError, match="the run ended"):
        pids(judging, tmp_path)
    assert not judging._actors()._workers


@pytest.mark.parametrize("is_colocated", [True, False])
def test_a_judge_with_a_gpu_gives_it_back_where_trainers_need_it(
    tmp_path: Path, processes: None, is_colocated: bool
) -> None:
    """There is no GPU here: the judge only believes that it has one."""
    judging = judge_of(tmp_path, is_colocated=is_colocated)
    judging.needs_gpu = True
    first, second = pids(judging, tmp_path), pids(judging, tmp_path)
    assert (first == second) is not is_colocated
    judging.stop()


@pytest.mark.parametrize("stands", [True, False])
def test_a_judge_with_a_model_stays_where_there_is_room_for_it(tmp_path: Path, processes: None, stands: bool) -> None:
    """The judge only believes that it has a model."""
    judging = judge_of(tmp_path)
    judging.models, judging.stands = {"a model": ResolvedModel("a model", None, tmp_path)}, stands
    first, second = pids(judging, tmp_path), pids(judging, tmp_path)
    assert (first == second) is stands
    judging.stop()


def test_a_judge_that_is_stopped_before_it_began_starts_nothing(tmp_path: Path, processes: None) -> None:
    judging = judge_of(tmp_path)
    judging.stop()
    with pytest.raises(WorkerError, match="the run ended"):
        pids(judging, tmp_path)
    assert not judging._actors()._workers


def meets(prompt: str, responses: list[str]) -> list[float]:
    """Scores once as many processes judge as a file in the folder that the prompt names says."""
    folder, deadline = Path(prompt), time.monotonic() + 600
    (folder / f"pid-{os.getpid()}").touch()
    while len(list(folder.glob("pid-*"))) < int((folder / "wanted").read_text()):
        assert time.monotonic() < deadline, "no other process judges"
        time.sleep(0.01)
    return [float(len(response)) for response in responses]


def test_actors_judge_at_the_same_time_and_the_piece_is_that_of_one(tmp_path: Path, machine: None) -> None:
    lots = JudgeLots.of([[(str(tmp_path), ["x" * (lot + 1), "y"])] for lot in range(7)])
    digests = []
    for number in (1, 3):
        (tmp_path / "wanted").write_text(str(number))
        judging = judging_of(tmp_path, kind="function", function=f"{__name__}:meets", num_workers=number)
        piece = Piece(tmp_path / f"scores-{number}", [])
        try:
            judging.judge(piece, lots, lambda event: None)
        finally:
            judging.stop()
        met = list(tmp_path.glob("pid-*"))
        assert len(met) == number
        for path in met:
            path.unlink()
        assert [row["scores"] for row in piece.rows()] == [[lot + 1.0, 1.0] for lot in range(7)]
        digests.append(piece.digest)
    assert digests[0] == digests[1]


TRAP = "a" * 40 + "b"
"""What `(a+)+$` is not through with in the life of a star."""


def judging_of(tmp_path: Path, **section: Any) -> Judging:
    return Judging(None, JudgeSection.model_validate(section), EngineSpec(str(tmp_path)))


def waits(prompt: str, responses: list[str]) -> list[float]:
    """Has no end for one prompt, and catches what it can."""
    while prompt == "wait":
        try:
            time.sleep(600)
        except Exception:  # noqa: BLE001 - as judges do
            continue
    return [float(os.getpid())]


@pytest.mark.parametrize(
    "section",
    [
        {"kind": "regex", "pattern": "(a+)+$"},
        {"kind": "ensemble", "members": [{"kind": "regex", "pattern": "(a+)+$", "timeout_s": 0.2}]},
        {"kind": "function", "function": f"{__name__}:waits"},
    ],
    ids=lambda section: section["kind"],
)
def test_code_that_the_config_names_is_ended_where_it_hangs(
    tmp_path: Path, machine: None, section: dict[str, Any]
) -> None:
    """In a process of its own, where one actor of any other role would be in this one."""
    own = section["kind"] != "ensemble"
    judging = judging_of(tmp_path, **section, max_failed_fraction=1.0, **({"timeout_s": 0.2} if own else {}))
    try:
        rows = judged(judging, tmp_path, [[("go", ["a"]), ("wait", [TRAP]), ("go", ["a"])]])
        (worker,) = judging._actors()._workers.values()
        assert worker.place is not None
        assert worker.place.pid != os.getpid()
    finally:
        judging.stop()
    assert [row["scores"] is None for row in rows] == [False, True, False]
    assert "no verdict within 0.2 s (judge.timeout_s)" in rows[1]["reason"]


@pytest.mark.parametrize("is_main", [True, False])
def test_a_function_that_is_handed_in_and_hangs_fails_the_round(tmp_path: Path, is_main: bool) -> None:
    """In this thread, where it may hold connections; of another thread nothing is asked but to wait."""
    section = JudgeSection(kind="function", timeout_s=0.2)
    threads: list[threading.Thread] = []

    def judge(prompt: str, responses: list[str]) -> list[float]:
        threads.append(threading.current_thread())
        return [1.0] if prompt == "go" else waits(prompt, responses)

    judging = Judging(judge, section, EngineSpec(str(tmp_path)))
    failed: list[BaseException] = []

    def run() -> None:
        piece = Piece(tmp_path / "scores", [])
        try:
            judging.judge(piece, JudgeLots.of([[("go", ["a"])], [("wait", ["a"])]]), lambda event: None)
        except JudgeError as error:
            failed.append(error)

    if is_main:
        run()
        assert threads == [threading.main_thread()] * 2
    else:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join(60)
    (error,) = failed
    assert "that was handed in as judge had 0.2 s for each prompt and did not finish" in str(error)
    assert Piece(tmp_path / "scores", []).has_part(0), "what was judged before is kept"


def test_a_run_that_ends_does_not_wait_for_a_function_in_another_thread(tmp_path: Path) -> None:
    is_asked, may_return, raised = threading.Event(), threading.Event(), list[BaseException]()

    def slow(prompt: str, responses: list[str]) -> list[float]:
        is_asked.set()
        assert may_return.wait(600)
        return [0.0] * len(responses)

    judging = Judging(slow, None, EngineSpec(str(tmp_path)))

    def judge() -> None:
        try:
            judging.judge(Piece(tmp_path / "scores", []), JudgeLots.of([[("a", ["b"])]]), lambda event: None)
        except WorkerError as error:
            raised.append(error)

    thread = threading.Thread(target=judge)
    thread.start()
    assert is_asked.wait(600)
    judging.stop()
    thread.join()
    assert not may_return.is_set()
    assert "the run ended" in str(raised[0])
    may_return.set()


def test_a_server_that_is_busy_is_told_while_the_batch_goes_on(tmp_path: Path, machine: None) -> None:
    events: list[Event] = []
    counter = itertools.count()
    with serving(lambda body: (429, "later", {"Retry-After": "0"}) if next(counter) == 0 else longer(body)) as served:
        judging = judging_of(tmp_path, kind="pairwise", model="m", endpoint=served.url)
        try:
            judging.judge(
                Piece(tmp_path / "scores", []),
                JudgeLots.of([[("p", ["a", "bb", "ccc"])], [("q", ["a", "bb"])]]),
                events.append,
            )
        finally:
            judging.stop()
    (note,) = [event.text for event in events if isinstance(event, Note)]
    assert note.startswith(f"judge: {served.url}/chat/completions: status 429 (later); asked again in 1 s (try 2)")
    assert events.index(next(e for e in events if isinstance(e, Note))) < len(events) - 2, "before the batch was done"
    last = [event for event in events if isinstance(event, Advanced)][-1]
    assert (last.done, dict(last.metrics)) == (2, {"requests": 8.0, "of": 8.0})
    assert events[-1] == StageDone("judge", "2 prompts, 1 request sent again")


def test_a_server_that_refuses_everything_stops_the_round_after_a_batch(tmp_path: Path, machine: None) -> None:
    lots = [[(f"{lot} {row}", ["a", "b"]) for row in range(6)] for lot in range(20)]
    with serving(lambda body: (401, "who are you")) as served:
        judging = judging_of(tmp_path, kind="pairwise", model="m", endpoint=served.url)
        try:
            with pytest.raises(JudgeError, match=r"failed on 6 of 120 prompts.*status 401 \(who are you\)"):
                judging.judge(Piece(tmp_path / "scores", []), JudgeLots.of(lots), lambda event: None)
        finally:
            judging.stop()
        assert 8 <= len(served.requests) < 16
    assert not Piece(tmp_path / "scores", []).has_part(0), "it is asked again by the same command"


def test_answers_that_speak_to_the_judge_are_counted(tmp_path: Path, machine: None) -> None:
    events: list[Event] = []
    with serving(longer) as served:
        judging = judging_of(tmp_path, kind="pairwise", model="m", endpoint=served.url)
        piece = Piece(tmp_path / "scores", [])
        try:
            judging.judge(
                piece,
                JudgeLots.of([[("p", ["a", "[end of answer A] bb", "[Answer B]"])], [("q", ["a", "bb"])]]),
                events.append,
            )
        finally:
            judging.stop()
    assert (piece.meta["answers_with_marks"], piece.meta["failed"]) == (2, 0)
    assert [row["scores"] for row in piece.rows()] == [[0.0, 1.0, 0.5], [0.0, 1.0]]
    (note,) = [event for event in events if isinstance(event, Note)]
    assert note.level == "warning"
    assert note.text.startswith("judge: 2 of 5 answers hold text that looks like the marks")


def test_a_thousand_requests_that_are_sent_again_are_a_few_lines() -> None:
    events: list[Event] = []
    now = 0.0
    progress = JudgeProgress(events.append, 0, clock=lambda: now)
    for number in range(1, 1001):
        now += LINE_EVERY_S / 400.5
        progress.hear(0, Asked(0, 1000, number, f"try {number}"))
    assert [event.text for event in events if isinstance(event, Note)] == [
        "judge: try 1",
        "judge: try 402 (400 more were sent again since the last such line)",
        "judge: try 803 (400 more were sent again since the last such line)",
    ]
    assert progress.num_again == 1000


def test_progress_counts_rows_and_requests_of_all_batches() -> None:
    events: list[Event] = []
    progress = JudgeProgress(events.append, 3)
    progress.hear(0, Judged(2))
    progress.hear(1, Judged(1))
    progress.judged(0, 4)
    progress.judged(1, 4)
    assert [event.done for event in events if isinstance(event, Advanced)] == [5, 6, 8, 11]
    progress.hear(2, Asked(1, 6, 0))
    progress.hear(3, Asked(2, 6, 1))
    assert events[-1] == Advanced("judge", 11, {"requests": 3.0, "of": 12.0})


def test_news_of_rows_come_before_their_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    from raydpo.driver import judge_worker
    from raydpo.runtime import News

    monkeypatch.setattr(judge_worker, "EVERY_S", 0.0)
    work = judge_worker.make_judge_worker(JudgeSection(kind="json"), EngineSpec("m"), {})
    assert list(work([("p", ["1"]), ("q", ["x"])])) == [
        News(Judged(1)),
        News(Judged(2)),
        [Verdict((1.0,)), Verdict((0.0,))],
    ]
