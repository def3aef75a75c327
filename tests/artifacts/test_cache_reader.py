"""A reader of a cache opens the shards that it reads rows of, by an index that all processes map and nobody has to trust."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raydpo.artifacts import ReferenceCache, cache_reader, collect_garbage
from raydpo.artifacts.cache_index import INDEX_FOLDER, MappedIndex
from raydpo.artifacts.cache_reader import CacheReader
from raydpo.errors import IntegrityError
from tests.artifacts.golden import IDENTITY

ROWS = 5


def key_of(shard: int, row: int) -> str:
    return hashlib.sha256(f"{shard} {row}".encode()).hexdigest()[:32]


def nats_of(shard: int, row: int) -> np.ndarray:
    return np.full(row + 1, -shard - row / 8, np.float32)


def add(cache: ReferenceCache, *shards: int) -> None:
    for shard in shards:
        keys = [key_of(shard, row) for row in range(ROWS)]
        cache.write_shard(f"s{shard}", keys, [nats_of(shard, row) for row in range(ROWS)])


def cache_of(folder: Path, num_shards: int) -> ReferenceCache:
    cache = ReferenceCache(folder, IDENTITY)
    add(cache, *range(num_shards))
    cache.open().write_index()
    return cache


def assert_reads(reader: CacheReader, *rows: tuple[int, int]) -> None:
    for found, row in zip(reader.lookup([key_of(*row) for row in rows]), rows, strict=True):
        np.testing.assert_array_equal(found, nats_of(*row))


def test_only_shards_whose_rows_are_read_are_opened(tmp_path: Path) -> None:
    reader = CacheReader(cache_of(tmp_path, 40).folder)
    assert reader.num_verified == 0
    assert_reads(reader, (7, 4), (30, 0), (7, 1), (7, 0), (30, 2))
    assert reader.num_verified == 2
    assert_reads(reader, (7, 2))
    assert reader.num_verified == 2
    assert_reads(reader, *((shard, row) for shard in range(40) for row in range(ROWS)))
    assert reader.num_verified == 40


def test_threads_read_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_reader, "_MOST_OPEN", 3)
    reader, rows = (
        CacheReader(cache_of(tmp_path, 20).folder),
        [(shard, row) for shard in range(20) for row in range(ROWS)],
    )
    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(assert_reads, reader, *rows[start::3]) for start in range(12)]:
            done.result()


def test_few_shards_need_no_index(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 16)
    assert MappedIndex.newest(cache.folder) is None
    assert_reads(CacheReader(cache.folder), (3, 1), (15, 4))


def test_an_index_grows_with_commits(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 20)
    first = CacheReader(cache.folder)
    add(cache, 20, 21)
    cache.open().write_index()
    index = MappedIndex.newest(cache.folder)
    assert index is not None
    assert not index.names("s20"), "two shards more are no reason to write it anew"
    reader = CacheReader(cache.folder)
    assert_reads(reader, (21, 3), (4, 2))
    assert reader.num_verified == 3, "those that it does not name, and the one that was read"
    add(cache, *range(22, 45))
    cache.open().write_index()
    reader = CacheReader(cache.folder)
    assert_reads(reader, (44, 3))
    assert reader.num_verified == 1
    assert_reads(first, (19, 0), (44, 1))


def test_a_missing_row_is_named(tmp_path: Path) -> None:
    reader = CacheReader(cache_of(tmp_path, 20).folder)
    with pytest.raises(IntegrityError, match=f"1 of 2 rows are not in the reference cache .*first: {key_of(99, 0)}"):
        reader.lookup([key_of(3, 3), key_of(99, 0)])
    with pytest.raises(IntegrityError, match="rows are not in"):
        CacheReader(tmp_path / "none").lookup(["k"])
    assert CacheReader(tmp_path / "none").lookup([]) == []


def test_a_damaged_shard_is_no_source_of_values(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 20)
    (path,) = (cache.folder / "shards").glob("s7-*.arrow")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert_reads(CacheReader(cache.folder), (6, 1))
    with pytest.raises(IntegrityError, match="1 of 1 rows are not in"):
        CacheReader(cache.folder).lookup([key_of(7, 0)])
    cache.write_shard("again", [key_of(7, 0)], [nats_of(7, 0)])
    assert_reads(CacheReader(cache.folder), (7, 0), (8, 1))


@pytest.mark.parametrize("file", ["keys.npy", "places.npy", "shards.npy"])
def test_an_index_is_not_trusted(file: str, tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 20)
    (path,) = (cache.folder / INDEX_FOLDER).glob(f"*/{file}")
    whole = path.read_bytes()
    for start in range(128, len(whole), 97):
        path.write_bytes(whole[:start] + bytes(byte ^ 5 for byte in whole[start : start + 40]) + whole[start + 40 :])
        assert_reads(CacheReader(cache.folder), (3, 1), (19, 4), (0, 0))
    for text in (b"", whole[:90], whole[:-9]):
        path.write_bytes(text)
        assert_reads(CacheReader(cache.folder), (3, 1), (19, 4))


def test_an_index_that_is_named_and_gone_is_none(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 20)
    for text in ('{"index": "no"}', "{", '{"index": "../../elsewhere"}', "{}"):
        (cache.folder / "index.json").write_text(text)
        assert_reads(CacheReader(cache.folder), (3, 1))


def test_an_opened_cache_reads_new_shards_alone(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 3)
    (path,) = (cache.folder / "shards").glob("s1-*.arrow")
    path.rename(tmp_path / "aside")
    add(cache, 3)
    assert cache.open().damaged == [], "what was verified is not read again"
    np.testing.assert_array_equal(cache.lookup([key_of(1, 1), key_of(3, 0)])[0], nats_of(1, 1))


def test_memory_of_a_process_does_not_grow_with_the_cache(tmp_path: Path) -> None:
    private = []
    for num_shards in (20, 80):
        folder, before = cache_of(tmp_path / str(num_shards), num_shards).folder, pa.total_allocated_bytes()
        reader = CacheReader(folder)
        values = reader.lookup([key_of(shard, 4) for shard in range(num_shards)])
        assert not any(each.flags.owndata for each in values)
        private.append(pa.total_allocated_bytes() - before)
    assert private[0] == private[1] == 0


def test_old_indexes_are_garbage(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 20)
    add(cache, *range(20, 40))
    cache.open().write_index()
    folders = list((cache.folder / INDEX_FOLDER).iterdir())
    assert len(folders) == 2
    for path in folders:
        os.utime(path, (0, 0))
    assert [removal.reason for removal in collect_garbage(tmp_path)] == ["index of fewer shards"]
    assert_reads(CacheReader(cache.folder), (39, 1))
