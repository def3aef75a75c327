"""One owner a run directory: whoever removes the lock, and where there is none, one driver commits and the other one cannot."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.artifacts import Lease, RunLock, commit_folder, fence, lock, require_lease
from raydpo.artifacts.commit_log import CommitLog
from raydpo.artifacts.folders import discard
from raydpo.config import Config
from raydpo.errors import LostLeaseError, RunInUseError, StorageError
from raydpo.models.resolve import ResolvedModel
from raydpo.rundir.checkpoints import commit_checkpoint
from raydpo.rundir.piece import Piece
from raydpo.rundir.workspace import Workspace
from raydpo.schema.rank_events import Staged

ROOT = Path(__file__).parents[2]
DRIVER = """
import fcntl, os, sys
from pathlib import Path
from raydpo.artifacts import Lease
def no_flock(*_):
    raise OSError(37, "No locks available")
if sys.argv[2] == "without":
    fcntl.flock = no_flock
with Lease(Path(sys.argv[1])) as lease:
    print(lease.attempt, flush=True)
    sys.stdin.readline()
"""
Driver = subprocess.Popen[str]


def begin(folder: Path, flock: str = "with") -> Driver:
    """Another process that owns `folder`, until it is told to end."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder), flock],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip().isdecimal()
    return process


def end(process: Driver) -> None:
    process.communicate("\n", timeout=60)
    assert process.returncode == 0


def take_over(folder: Path) -> None:
    """What somebody does who removes the lock of a run that is alive, starts it again and ends it."""
    (folder / "lock").unlink()
    end(begin(folder))


def entries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((folder / "log").glob("*.json"))]


def staged(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"mine")
    return folder


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    def refuse(*_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_every_commit_is_in_the_log_with_its_attempt(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for attempt in (1, 2):
        with Lease(tmp_path / "run") as lease:
            assert lease.attempt == attempt
            assert lease.notes == ()
            commit_folder(staged(tmp_path / "run" / ".s"), tmp_path / "run" / "checkpoints" / str(attempt), {})
            fence(tmp_path / "elsewhere")
    found = [(entry["attempt"], entry["kind"], entry.get("what")) for entry in entries(tmp_path / "run")]
    assert found == [
        (1, "attempt", None),
        (1, "commit", "checkpoints/1"),
        (2, "attempt", None),
        (2, "commit", "checkpoints/2"),
    ]
    assert {entry["pid"] for entry in entries(tmp_path / "run")} == {os.getpid()}


def test_a_driver_that_lost_the_lease_commits_nothing_and_removes_nothing(tmp_path: Path) -> None:
    model = ResolvedModel("model", None, tmp_path)
    workspace = Workspace(cast(Config, None), tmp_path / "run", tmp_path / "cache", model, model)
    run = workspace.dir
    with Lease(run):
        for name in ("checkpoints/step-000003", "model", "rounds/000/pairs"):
            (run / name).mkdir(parents=True)
            (run / name / "weights").write_bytes(b"theirs")
        (run / "summary.json").write_text("theirs")
        staging, fresh = staged(workspace.staging()), staged(workspace.unpublished("model"))
        piece = Piece(run / "rounds" / "000" / "pairs", 1)
        piece.begin()
        take_over(run)
        for commit in (
            lambda: commit_checkpoint([Staged(3, str(staging), {})], workspace.checkpoints, {}),
            lambda: workspace.publish(fresh, "model"),
            lambda: piece.commit({}),
            lambda: workspace.write_summary({"mine": True}),
            workspace.set_aside,
        ):
            with pytest.raises(LostLeaseError, match=r"took it over with attempt 2; this was attempt 1") as lost:
                commit()
            assert lost.value.exit_code == 2
        assert [entry["kind"] for entry in entries(run)] == ["attempt", "attempt"]
    for name in ("checkpoints/step-000003", "model", "rounds/000/pairs"):
        assert (run / name / "weights").read_bytes() == b"theirs"
    assert (run / "summary.json").read_text() == "theirs"


def test_a_folder_that_is_inside_another_run_is_lost_with_it(tmp_path: Path) -> None:
    inner = tmp_path / "rounds" / "000" / "train"
    with Lease(tmp_path), Lease(inner):
        fence(inner / "model")
        take_over(tmp_path)
        with pytest.raises(LostLeaseError):
            fence(inner / "model")
        with pytest.raises(LostLeaseError), Lease(tmp_path / "rounds" / "001" / "train"):
            pass
    assert [entry["kind"] for entry in entries(inner)] == ["attempt", "commit"]


def test_what_was_allowed_before_the_lease_was_lost_is_swept_away_with_its_staging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging, final = staged(tmp_path / ".staging-a"), tmp_path / "step-000001"
    rename = os.rename

    def late(source: Any, target: Any) -> None:
        monkeypatch.setattr(os, "rename", rename)
        take_over(tmp_path)
        discard(Path(source))
        rename(source, target)

    with Lease(tmp_path):
        monkeypatch.setattr(os, "rename", late)
        with pytest.raises(LostLeaseError):
            commit_folder(staging, final, {})
    assert not final.exists()


def test_a_lock_that_is_only_removed_is_taken_again(tmp_path: Path) -> None:
    with Lease(tmp_path):
        (tmp_path / "lock").unlink()
        fence(tmp_path / "model")
        with pytest.raises(RunInUseError, match=str(os.getpid())), RunLock(tmp_path):
            pass
        (tmp_path / "lock").unlink()
        (tmp_path / "log").rename(tmp_path / "gone")
        with pytest.raises(LostLeaseError, match="nobody can tell"):
            fence(tmp_path / "model")


def test_a_file_system_that_numbers_its_files_anew_is_no_other_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os.path, "samestat", lambda *_: False)
    with Lease(tmp_path) as lease:
        before = (tmp_path / "lock").read_bytes()
        fence(tmp_path / "model")
        assert (lease.attempt, (tmp_path / "lock").read_bytes()) == (1, before)
        (tmp_path / "lock").write_bytes(before + b" ")
        assert not lease._lock.is_intact


def test_a_lock_that_another_driver_took_meanwhile_is_lost(tmp_path: Path) -> None:
    with Lease(tmp_path):
        (tmp_path / "lock").unlink()
        with RunLock(tmp_path), pytest.raises(LostLeaseError, match="is in use by process"):
            require_lease(tmp_path / "model")


def test_one_process_begins_one_attempt_at_a_time(tmp_path: Path) -> None:
    with Lease(tmp_path):
        (tmp_path / "lock").unlink()
        with pytest.raises(RunInUseError, match="attempt 1"), Lease(tmp_path):
            pass
    with Lease(tmp_path) as lease:
        assert lease.attempt == 2


@pytest.mark.parametrize("no_flock", sorted(lock.NO_FLOCK), indirect=True, ids=lambda number: errno.errorcode[number])
@pytest.mark.usefixtures("no_flock")
def test_without_flock_the_log_keeps_two_drivers_apart_and_one_note_says_so(tmp_path: Path) -> None:
    with Lease(tmp_path) as first:
        assert len(first.notes) == 1
        assert "no locks (flock)" in first.notes[0]
        fence(tmp_path / "model")
    with Lease(tmp_path) as again:
        assert again.attempt == 2
    assert [entry["kind"] for entry in entries(tmp_path)] == ["attempt", "commit", "end", "attempt", "end"]


@pytest.mark.parametrize("no_flock", [errno.ENOLCK], indirect=True)
@pytest.mark.usefixtures("no_flock")
def test_without_flock_a_driver_of_this_machine_is_known_by_its_process(tmp_path: Path) -> None:
    other = begin(tmp_path, "without")
    with pytest.raises(RunInUseError, match=f"process {other.pid} on"), Lease(tmp_path):
        pass
    other.kill()
    other.wait(timeout=60)
    with Lease(tmp_path) as lease:
        assert lease.attempt == 2, "a driver that was refused has not begun"
        # One of another machine, of which nothing is known, takes it over.
        assert CommitLog(tmp_path / "log").put(3, {"attempt": 3, "kind": "attempt", "host": "elsewhere", "pid": 7})
        with pytest.raises(LostLeaseError, match="process 7 on elsewhere"):
            fence(tmp_path / "model")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES], ids=lambda number: errno.errorcode[number])
def test_what_a_file_system_says_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", refuse)
        with pytest.raises(StorageError, match=os.strerror(number)), Lease(tmp_path):
            pass
    with Lease(tmp_path), monkeypatch.context() as patched:
        patched.setattr(os, "link", refuse)
        with pytest.raises(StorageError, match=r"nothing was committed|committed before is untouched"):
            fence(tmp_path / "model")


@pytest.mark.parametrize("kind", ["file", "below a file"])
def test_a_run_directory_that_cannot_be_made(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("x")
    folder = tmp_path / "file" if kind == "file" else tmp_path / "file" / "run"
    with pytest.raises(StorageError, match="has to be a folder"), Lease(folder):
        pass


@pytest.mark.parametrize("kind", ["symlink", "dangling", "fifo", "folder", "log"])
def test_a_lock_that_is_something_else_is_refused_and_left_as_it_is(tmp_path: Path, kind: str) -> None:
    run, victim = tmp_path / "run", tmp_path / "victim"
    run.mkdir()
    if kind != "dangling":
        victim.write_text("precious")
    if kind == "fifo":
        os.mkfifo(run / "lock")
    elif kind == "folder":
        (run / "lock").mkdir()
    else:
        (run / ("log" if kind == "log" else "lock")).symlink_to(tmp_path if kind == "log" else victim)
    with pytest.raises(StorageError, match="is a link"), Lease(run):
        pass
    assert victim.exists() == (kind != "dangling")
    assert kind == "dangling" or victim.read_text() == "precious"
    assert not list(tmp_path.glob("*.json"))


def test_a_lock_that_has_a_second_name_is_not_written_to(tmp_path: Path) -> None:
    run, victim = tmp_path / "run", tmp_path / "victim"
    run.mkdir()
    victim.write_text("precious")
    os.link(victim, run / "lock")
    with Lease(run):
        fence(run / "model")
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("jump_s", [-1e9, 1e9], ids=["back", "ahead"])
def test_a_clock_that_jumps_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump_s: float) -> None:
    now, strftime = time.time, time.strftime
    with Lease(tmp_path):
        fence(tmp_path / "before")
        monkeypatch.setattr(time, "time", lambda: now() + jump_s)
        monkeypatch.setattr(time, "strftime", lambda form: strftime(form, time.localtime(now() + jump_s)))
        fence(tmp_path / "after")
        take_over(tmp_path)
        with pytest.raises(LostLeaseError):
            fence(tmp_path / "later")
    with Lease(tmp_path) as lease:
        assert lease.attempt == 3


def test_a_log_of_damaged_entries_is_gone_on_with(tmp_path: Path) -> None:
    with Lease(tmp_path):
        fence(tmp_path / "model")
    for number, text in ((3, b""), (4, b"\xff{"), (5, b"[]"), (6, b'{"attempt": true}')):
        (tmp_path / "log" / f"{number:08d}.json").write_bytes(text)
    (tmp_path / "log" / "notes.json").write_text("{}")
    with Lease(tmp_path) as lease:
        assert lease.attempt == 6, "each of the four may have been an attempt"
        assert (tmp_path / "log" / "00000007.json").is_file()


@pytest.mark.parametrize("link", ["with", "without", "answer lost"])
def test_of_many_that_put_one_number_one_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: str) -> None:
    real = os.link

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    def forget(source: Any, target: Any) -> None:
        real(source, target)
        raise FileExistsError(errno.EEXIST, "said twice")

    if link != "with":
        monkeypatch.setattr(os, "link", refuse if link == "without" else forget)
    log, start = CommitLog(tmp_path / "log"), threading.Barrier(6)
    won: list[tuple[int, int]] = []

    def run(who: int) -> None:
        start.wait()
        won.extend((number, who) for number in range(1, 21) if log.put(number, {"who": who}))

    threads = [threading.Thread(target=run, args=(who,)) for who in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for number, _ in won) == list(range(1, 21))
    assert all(log.read(number) == {"who": who} for number, who in won)
    assert not list((tmp_path / "log").glob(".*"))


class _Interrupted(CommitLog):
    """A log whose user stops between looking for the newest entry and putting its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.between: list[Callable[[], None]] = []

    def put(self, number: int, entry: Mapping[str, Any]) -> bool:
        if self.between:
            self.between.pop()()
        return super().put(number, entry)


STEPS = [
    "begin",
    "begin while the other begins",
    "begin while the other commits",
    "commit",
    "commit while the other begins",
]


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from(STEPS)), max_size=20))
def test_in_any_order_of_two_drivers_only_the_newest_attempt_commits(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, str]]
) -> None:
    """Each believes to have the lock: nothing but the log keeps them apart."""
    folder = tmp_path_factory.mktemp("run")
    log = _Interrupted(folder / "log")
    drivers, newest = [Lease(folder), Lease(folder)], -1
    for who, driver in enumerate(drivers):
        driver._log = log
        driver._lock = RunLock(folder / f"lock of {who}")
        driver._lock.acquire()

    def begin(who: int) -> None:
        nonlocal newest
        drivers[who]._begin()
        newest = who

    def commit(who: int) -> None:
        owner = newest
        if not drivers[who].attempt:
            return
        try:
            drivers[who].commit("model")
        except LostLeaseError:
            assert who != newest
        else:
            assert who == owner == newest

    for who, step in steps:
        what, _, meanwhile = step.partition(" while the other ")
        log.between = [partial(begin if meanwhile == "begins" else commit, 1 - who)] if meanwhile else []
        (begin if what == "begin" else commit)(who)
        log.between = []
    for driver in drivers:
        driver._lock.release()
    written = entries(folder)
    assert [entry["attempt"] for entry in written] == sorted(entry["attempt"] for entry in written)
    begun = [entry["attempt"] for entry in written if entry["kind"] == "attempt"]
    assert begun == list(range(1, len(begun) + 1)), "no number twice"
