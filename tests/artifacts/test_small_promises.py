"""What a reader of the files, and the process that wrote them, may rely on: text as it stands, no descriptor left open."""

from __future__ import annotations

import json
import math
import os
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from raydpo.artifacts import CacheIdentity, ReferenceCache, RunLock, commit_folder, fsync, write_json, write_text
from raydpo.artifacts.durable import strict
from raydpo.artifacts.garbage import GRACE_S, collect_garbage
from raydpo.errors import RunInUseError, StorageError


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_json_files_are_written_for_people(tmp_path: Path) -> None:
    write_json(
        tmp_path / "a.json", {"name": "Zürich", "values": (1, math.nan, [math.inf, 2.5]), "deep": {"x": -math.inf}}
    )
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text.splitlines()[:2] == ["{", '  "name": "Zürich",']
    assert text.endswith("}\n")
    assert json.loads(text) == {"name": "Zürich", "values": [1, None, [None, 2.5]], "deep": {"x": None}}


def test_strict_keeps_what_json_has() -> None:
    assert strict({"a": [True, None, "NaN", 1, 0.5, ()]}) == {"a": [True, None, "NaN", 1, 0.5, []]}


def test_a_write_leaves_neither_descriptor_nor_temporary_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "first")  # whatever is opened once a process
    before = open_descriptors()
    for number in range(5):
        write_text(tmp_path / "a.txt", str(number))
        fsync(tmp_path)
    assert open_descriptors() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    (tmp_path / "b").mkdir()
    with pytest.raises(StorageError, match="Is a directory"):
        write_text(tmp_path / "b", "a folder has the name")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_lock_gives_its_descriptor_back(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        pass
    before = open_descriptors()
    for _ in range(5):
        with RunLock(tmp_path):
            assert open_descriptors() == before + 1
            with pytest.raises(RunInUseError, match=f"process {os.getpid()} on "), RunLock(tmp_path):
                pytest.fail("two hold one lock")
            assert open_descriptors() == before + 1
    assert open_descriptors() == before


def test_a_lock_says_who_holds_it_now(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("x" * 1000)  # an owner with a longer name
    with RunLock(tmp_path) as lock:
        owner = json.loads(lock.path.read_text())
        assert owner["pid"] == os.getpid()
        assert set(owner) == {"host", "pid", "since", "id"}
    assert lock.path.exists(), "whoever waits on the file has the same one"


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    """It ends with the process that took it, though a child that was forked meanwhile lives on."""
    reading, writing = os.pipe()
    running, tell = os.pipe()
    with RunLock(tmp_path):
        child = os.fork()
        if not child:
            os.close(writing)
            os.write(tell, b"x")
            os.read(reading, 1)
            os._exit(0)
    os.read(running, 1)
    try:
        with RunLock(tmp_path):
            pass
    finally:
        os.close(writing)
        os.waitpid(child, 0)
        for descriptor in (reading, running, tell):
            os.close(descriptor)


def test_a_lock_that_was_given_back_is_no_childs_business(tmp_path: Path) -> None:
    """A descriptor number that was used again is not closed in a child."""
    with RunLock(tmp_path):
        pass
    descriptor = os.open(tmp_path / "lock", os.O_RDONLY)
    child = os.fork()
    if not child:
        with suppress(OSError):
            os.fstat(descriptor)
            os._exit(0)
        os._exit(1)
    os.close(descriptor)
    assert os.waitpid(child, 0)[1] == 0


def test_a_committed_folder_names_files_in_folders(tmp_path: Path) -> None:
    staging = tmp_path / "staging"
    (staging / "deep").mkdir(parents=True)
    (staging / "deep/b.bin").write_bytes(b"123")
    (staging / "a.txt").write_text("x")
    commit_folder(staging, tmp_path / "final", {"step": 1})
    files = json.loads((tmp_path / "final/COMMIT.json").read_text())["files"]
    assert {name: entry["bytes"] for name, entry in files.items()} == {"a.txt": 1, "deep/b.bin": 3}


def test_a_shard_is_described_by_what_is_returned(tmp_path: Path) -> None:
    identity = CacheIdentity("w", "none", "t", "float32", "auto-cpu", "1")
    cache = ReferenceCache(tmp_path, identity)
    keys = [f"{number:032d}" for number in range(3)]
    values = [np.array([-1.0, -2.0]), np.array([-0.5]), np.array([-0.25, -0.125, -3.0])]
    record = cache.write_shard("one", keys, values)
    assert record.rows == 3
    assert record.bytes == (cache.folder / "shards" / record.name).stat().st_size
    cache.open()
    found = cache.lookup([keys[2], keys[0], keys[1], keys[2]])
    assert [each.tolist() for each in found] == [[-0.25, -0.125, -3.0], [-1.0, -2.0], [-0.5], [-0.25, -0.125, -3.0]]
    assert {each.dtype for each in found} == {np.dtype(np.float32)}
    assert cache.missing([keys[1], "f" * 32, keys[0], "e" * 32, "f" * 32]) == ["f" * 32, "e" * 32]


def test_leftovers_are_a_day_old(tmp_path: Path) -> None:
    assert GRACE_S == 24 * 60 * 60
    identity = CacheIdentity("w", "none", "t", "float32", "auto-cpu", "1")
    cache = ReferenceCache(tmp_path, identity)
    cache.write_shard("one", ["a" * 32], [np.array([-1.0])])
    young, old = cache.folder / "shards/.tmp-young", cache.folder / "shards/.tmp-old"
    for path, age_s in ((young, GRACE_S - 600), (old, GRACE_S + 600)):
        path.write_text("x")
        os.utime(path, (time.time() - age_s,) * 2)
    collect_garbage(tmp_path)
    assert (young.exists(), old.exists()) == (True, False)
