"""Claims: one holder a name at a time, none once its process is dead, and nothing is lost where there are no locks."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from raydpo.artifacts import ReferenceCache
from raydpo.artifacts.claim import claimed, is_claimed
from tests.artifacts.golden import IDENTITY, SHARDS, all_rows, assert_holds, rows_of


def test_a_name_is_held_once(tmp_path: Path) -> None:
    folder = tmp_path / "claims"
    assert not is_claimed(folder, "a")
    with claimed(folder, "a") as first, claimed(folder, "a") as second, claimed(folder, "b") as other:
        assert (first, second, other) == (True, False, True)
        assert is_claimed(folder, "a")
    assert not is_claimed(folder, "a")
    with claimed(folder, "a") as again:
        assert again
    assert list(folder.iterdir()) == [], "what is done leaves no file"


def test_an_error_gives_a_claim_back(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), claimed(tmp_path, "a"):
        raise RuntimeError
    assert not is_claimed(tmp_path, "a")
    with claimed(tmp_path, "a") as is_ours:
        assert is_ours


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with claimed(tmp_path, "a"):
            os.write(writing, b"x")
            signal.pause()
        os._exit(0)
    os.read(reading, 1)
    assert is_claimed(tmp_path, "a")
    with claimed(tmp_path, "a") as is_ours:
        assert not is_ours
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not is_claimed(tmp_path, "a")
    with claimed(tmp_path, "a") as is_ours:
        assert is_ours


def test_workers_that_claim_write_each_shard_once(tmp_path: Path) -> None:
    written: list[str] = []
    ready = threading.Barrier(8)

    def work() -> None:
        cache = ReferenceCache(tmp_path, IDENTITY)
        ready.wait()
        left = list(SHARDS) * 3
        while left:
            name = left.pop(0)
            with claimed(cache.claims, name) as is_ours:
                if not is_ours:
                    left.append(name)
                elif not cache.has_shard(name):
                    rows = rows_of(name)
                    cache.write_shard(name, [*rows], [*rows.values()])
                    written.append(name)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(written) == sorted(SHARDS)
    assert_holds(ReferenceCache(tmp_path, IDENTITY).open(), all_rows())


def test_a_shard_is_there_when_its_record_is_whole(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path, IDENTITY)
    assert not cache.has_shard("first")
    rows = rows_of("first")
    record = cache.write_shard("first", [*rows], [*rows.values()])
    assert cache.has_shard("first")
    (cache.folder / "shards" / record.name).unlink()
    assert not cache.has_shard("first")
    cache.write_shard("first", [*rows], [*rows.values()])
    (cache.folder / "shards" / "first.json").write_text("{")
    assert not cache.has_shard("first")
