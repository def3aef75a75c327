"""A process killed at any point of any durable write loses nothing, doubles nothing, and is continued by the same work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from raydpo.artifacts import CRASH_POINTS, ExampleTable, Lease, ReferenceCache, newest_valid, verify_folder
from raydpo.artifacts.commit_log import CommitLog
from raydpo.artifacts.durable import TEMPORARY, crash_point
from raydpo.errors import IntegrityError
from tests.artifacts.crash_work import CHECKPOINT, NEW, OLD, work
from tests.artifacts.golden import EXAMPLES, IDENTITY, all_rows, assert_holds, examples_in

ROOT = Path(__file__).parents[2]
ON_DISK = [point for point in CRASH_POINTS if not point.startswith("object:")]
"""The others are those of tests/storage."""


def run(folder: Path, *points: str) -> dict[str, int]:
    command = [sys.executable, "-m", "tests.artifacts.crash_work", str(folder), *points]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    counts: dict[str, int] = json.loads(done.stdout)
    return counts


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Crash point with its number -> what the killed process left. Every time that every point is reached."""
    reached = run(tmp_path_factory.mktemp("counted"))
    assert sorted(reached) == sorted(ON_DISK), "a crash point that this work does not reach is not tested"
    points = [f"{name}:{count}" for name, times in reached.items() for count in range(1, times + 1)]
    folder = tmp_path_factory.mktemp("killed")
    assert run(folder, *points) == dict.fromkeys(points, 137), "every one of these processes must have been killed"
    return {point: folder / point.replace(":", "_") for point in points}


def test_every_crash_point_ended_a_process(attempts: dict[str, Path]) -> None:
    assert {point.rpartition(":")[0] for point in attempts} == set(ON_DISK)
    assert len(attempts) > 40


def test_what_a_killed_process_leaves_is_whole_or_not_there(attempts: dict[str, Path]) -> None:
    golden, rows_left = all_rows(), set()
    for point, folder in attempts.items():
        cache = ReferenceCache(folder / "caches", IDENTITY).open()
        assert cache.damaged == [], point
        held = set(golden) - set(cache.missing([*golden]))
        assert_holds(cache, {key: golden[key] for key in held})
        rows_left.add(len(held))
        for checkpoint in (folder / "checkpoints").glob("step-*"):
            assert verify_folder(checkpoint) == [], point
        try:
            assert examples_in(ExampleTable.open(folder / "data", "train")) == EXAMPLES, point
        except IntegrityError:
            assert not (folder / "data" / "train.json").exists(), point
        assert json.loads((folder / "summary.json").read_text()) in (OLD, NEW), point
    assert rows_left == {0, 7, 14, 21}, "the kills must have come between all shards"


def test_a_temporary_file_is_left_only_by_a_kill_before_the_rename(attempts: dict[str, Path]) -> None:
    for point, folder in attempts.items():
        left = len(list(folder.rglob(f"{TEMPORARY}*")))
        assert left == (point.startswith(("file:before-fsync", "file:before-rename", "put:before-link"))), point


def test_the_same_work_again_ends_as_if_nothing_had_happened(attempts: dict[str, Path]) -> None:
    for point, folder in attempts.items():
        work(folder)
        cache = ReferenceCache(folder / "caches", IDENTITY).open()
        assert cache.damaged == [], point
        assert_holds(cache, all_rows())
        checkpoint, skipped = newest_valid(folder / "checkpoints", "step-")
        assert checkpoint is not None, point
        assert skipped == [], point
        assert {name: (checkpoint / name).read_bytes() for name in CHECKPOINT} == CHECKPOINT, point
        assert examples_in(ExampleTable.open(folder / "data", "train")) == EXAMPLES, point
        assert json.loads((folder / "summary.json").read_text()) == NEW, point


def test_the_log_of_commits_has_no_gap_and_ends_with_the_newest_attempt(attempts: dict[str, Path]) -> None:
    for point, folder in attempts.items():
        with Lease(folder) as lease:
            entries = [json.loads(path.read_text()) for path in sorted((folder / "log").glob("[0-9]*.json"))]
            assert [CommitLog(folder / "log").read(number + 1) for number in range(len(entries))] == entries, point
            assert entries[-1]["attempt"] == lease.attempt == len([e for e in entries if e["kind"] == "attempt"]), point
            assert [entry["attempt"] for entry in entries] == sorted(entry["attempt"] for entry in entries), point
            named = {entry["what"] for entry in entries if entry["kind"] == "commit"}
            assert (folder / "checkpoints" / "step-000001").is_dir() <= ("checkpoints/step-000001" in named), point


def test_a_name_that_is_not_declared_is_refused() -> None:
    with pytest.raises(AssertionError, match="file:nowhere"):
        crash_point("file:nowhere")
