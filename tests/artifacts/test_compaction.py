"""Small shards become large ones: bit-equal values, readers and writers undisturbed; what is left goes when nobody needs it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from raydpo.artifacts import ReferenceCache, collect_garbage, compact_cache, list_caches, verify_caches
from raydpo.artifacts.cache_reader import CacheReader
from raydpo.artifacts.cache_shards import live_names
from raydpo.artifacts.claim import claimed
from raydpo.artifacts.open_readers import OpenReader, open_readers
from raydpo.errors import UserError
from tests.artifacts.golden import IDENTITY, all_rows, assert_holds, rows_of, shard_file, write
from tests.artifacts.test_cache_reader import ROWS, add, assert_reads, cache_of, key_of, nats_of
from tests.artifacts.test_housekeeping import age, everything

ALL = [(shard, row) for shard in range(24) for row in range(ROWS)]


def files(cache: ReferenceCache) -> list[str]:
    return sorted(path.name for path in (cache.folder / "shards").glob("*.arrow"))


def test_many_become_few_with_the_same_values(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 24)
    size = sum((cache.folder / "shards" / name).stat().st_size for name in files(cache))
    done = compact_cache(cache.folder, merged_bytes=2500)
    assert (done.shards_before, done.bytes_before) == (24, size)
    assert done.shards == 3
    assert done.bytes < size
    merged = [name for name in files(cache) if name.startswith("0-merged-")]
    assert all((cache.folder / "shards" / name).stat().st_size < 4000 for name in merged)
    fresh = ReferenceCache(tmp_path, IDENTITY).open()
    assert fresh.table().num_rows == len(ALL)
    for found, row in zip(fresh.lookup([key_of(*row) for row in ALL]), ALL, strict=True):
        np.testing.assert_array_equal(found, nats_of(*row))
    reader = CacheReader(cache.folder)
    assert_reads(reader, (3, 1), (3, 4), (3, 2))
    assert reader.num_verified == 1
    assert compact_cache(cache.folder, merged_bytes=2500).shards == done.shards


def test_of_rows_that_stand_twice_the_value_that_was_given_stays(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path, IDENTITY)
    key = "a" * 32
    for name, nats in (("b", -1.0), ("d", -2.0), ("a", -3.0), ("c", -4.0)):
        cache.write_shard(name, [key, f"{ord(name):032x}"], [np.array([nats]), np.array([-9.0])])
    given = cache.open().lookup([key])[0].tolist()
    compact_cache(cache.folder)
    again = ReferenceCache(tmp_path, IDENTITY).open()
    assert again.lookup([key])[0].tolist() == given == [-3.0]
    assert again.table().num_rows == 5
    assert live_names(cache.folder) == [name for name in live_names(cache.folder) if name.startswith("0-merged-")]


def test_a_value_that_was_given_stays_whatever_else_is_merged(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path, IDENTITY)
    key, given = "a" * 32, []
    for number, merged_bytes in enumerate([700, 1 << 20, 700, 1 << 20] * 3):
        others = [f"{number:016x}{row:016x}" for row in range(8)]
        cache.write_shard(f"{9 - number % 3}", [key, *others], [np.array([-number - 1.0])] * 9)
        cache.write_shard(f"x{number}", [f"{number:032x}"], [np.array([-7.0])])
        before = cache.open().lookup([key])[0].tolist()
        compact_cache(cache.folder, merged_bytes)
        given.append((before, cache.open().lookup([key])[0].tolist()))
    assert [before for before, _ in given] == [after for _, after in given]


def test_an_open_reader_keeps_what_it_reads(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 24)
    cache.close()
    reader = CacheReader(cache.folder)
    assert_reads(reader, (0, 0))
    before = files(cache)
    compact_cache(cache.folder)
    index = {path.name for path in (cache.folder / "index").iterdir()}
    assert len(index) == 2
    collect_garbage(tmp_path, grace_s=0)
    assert set(before) < set(files(cache))
    assert {path.name for path in (cache.folder / "index").iterdir()} == index
    later = CacheReader(cache.folder)
    assert_reads(reader, *ALL)
    assert reader.num_verified == 24, "it went on with the shards that it found"
    reader.close()
    removed = collect_garbage(tmp_path, grace_s=0, dry_run=True)
    assert set(before) < set(files(cache)), "a dry run removes nothing"
    assert [removal.path for removal in collect_garbage(tmp_path, grace_s=0)] == [removal.path for removal in removed]
    assert not set(before) & set(files(cache))
    assert list((cache.folder / "replaced").iterdir()) == []
    assert_reads(later, *ALL)
    assert later.num_verified == 1
    assert collect_garbage(tmp_path, grace_s=0) == []


def test_a_reader_of_an_index_that_is_too_old_finds_the_merged_rows(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 24)
    pointer = (cache.folder / "index.json").read_bytes()
    compact_cache(cache.folder)
    (cache.folder / "index.json").write_bytes(pointer)  # killed before it was written
    reader = CacheReader(cache.folder)
    assert_reads(reader, (3, 1))
    cache.close()
    collect_garbage(tmp_path, grace_s=0)
    assert_reads(reader, *ALL)
    assert_reads(CacheReader(cache.folder), *ALL)


def test_replaced_shards_stay_for_a_while(tmp_path: Path) -> None:
    cache = write(tmp_path)
    compact_cache(cache.folder)
    assert collect_garbage(tmp_path) == []
    assert len(files(cache)) == 4
    age(cache.folder, 2)
    assert {removal.reason for removal in collect_garbage(tmp_path)} == {
        "shard that was merged into another",
        "list of merged shards that are gone",
    }
    assert len(files(cache)) == 1
    assert_holds(ReferenceCache(tmp_path, IDENTITY).open(), all_rows())


def test_what_is_written_meanwhile_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = write(tmp_path, "first", "second")
    real = ReferenceCache.merge_shards

    def with_company(self: ReferenceCache, *args: object) -> object:
        write(tmp_path, "third")
        rows = {key: nats - 1 for key, nats in rows_of("first").items()}
        self.write_shard("first", [*rows], [*rows.values()])  # with other values, as another machine may have
        return real(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(ReferenceCache, "merge_shards", with_company)
    compact_cache(cache.folder)
    assert set(live_names(cache.folder)) > {"first", "third"}
    assert len(live_names(cache.folder)) == 3
    collect_garbage(tmp_path, grace_s=0)
    fresh = ReferenceCache(tmp_path, IDENTITY).open()
    assert fresh.missing([*all_rows()]) == []
    assert fresh.damaged == []
    assert set(live_names(cache.folder)) > {"first", "third"}


def test_a_damaged_merged_shard_gives_back_what_it_replaced(tmp_path: Path) -> None:
    cache = write(tmp_path)
    compact_cache(cache.folder)
    merged = shard_file(cache, "0-merged")
    merged.write_bytes(merged.read_bytes()[:-1] + b"?")
    assert collect_garbage(tmp_path, grace_s=0) == [], "it was read before anything that it replaced may go"
    assert len(verify_caches(tmp_path)[1]) == 1
    assert sorted(CacheReader(cache.folder).lookup([*all_rows()])[5]) == sorted([*all_rows().values()][5])
    fresh = ReferenceCache(tmp_path, IDENTITY).open()
    assert len(fresh.damaged) == 1
    assert_holds(fresh, all_rows())
    assert live_names(cache.folder) == ["first", "second", "third"]
    compact_cache(cache.folder)
    assert [info.shards for info in list_caches(tmp_path)] == [1]
    assert_holds(ReferenceCache(tmp_path, IDENTITY).open(), all_rows())


def test_a_damaged_shard_is_left_alone_and_said(tmp_path: Path) -> None:
    cache = write(tmp_path)
    hurt = shard_file(cache, "second")
    hurt.write_bytes(b"?")
    done = compact_cache(cache.folder)
    assert (done.shards_before, done.shards, len(done.damaged)) == (2, 1, 1)
    assert hurt.read_bytes() == b"?"
    assert_holds(ReferenceCache(tmp_path, IDENTITY).open(), all_rows("first", "third"))


def test_a_list_without_its_shard_hides_nothing(tmp_path: Path) -> None:
    cache = write(tmp_path)
    compact_cache(cache.folder)
    (record,) = (cache.folder / "shards").glob("0-merged-*.json")
    text = record.read_text()
    record.unlink()
    assert live_names(cache.folder) == ["first", "second", "third"]
    assert {removal.reason for removal in collect_garbage(tmp_path, grace_s=0)} == {
        "shard that no record names",
        "list of a shard that is not there",
    }
    record.write_text(text)
    assert_holds(ReferenceCache(tmp_path, IDENTITY).open(), all_rows())


@pytest.mark.parametrize("text", ["", "[]", '{"by": "x"}', '{"by": 3, "shards": 4, "digest": "x"}'])
def test_a_list_that_is_damaged_hides_nothing(tmp_path: Path, text: str) -> None:
    cache = write(tmp_path)
    compact_cache(cache.folder)
    (path,) = (cache.folder / "replaced").iterdir()
    path.write_text(text)
    assert len(live_names(cache.folder)) == 4
    assert_holds(ReferenceCache(tmp_path, IDENTITY).open(), all_rows())
    collect_garbage(tmp_path, grace_s=0)
    assert_holds(ReferenceCache(tmp_path, IDENTITY).open(), all_rows())


def test_merged_shards_are_merged_again(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 12)
    compact_cache(cache.folder)
    add(cache, *range(12, 24))
    cache.close()
    assert compact_cache(cache.folder).shards == 1
    collect_garbage(tmp_path, grace_s=0)
    assert len(files(cache)) == 1
    assert_reads(CacheReader(cache.folder), *ALL)


def test_a_file_that_a_reader_had_before_its_record_was_written_anew_stays(tmp_path: Path) -> None:
    cache = write(tmp_path, "first").open()
    before = files(cache)
    rows = {key: nats - 1 for key, nats in rows_of("first").items()}
    ReferenceCache(tmp_path, IDENTITY).write_shard("first", [*rows], [*rows.values()])
    assert collect_garbage(tmp_path, grace_s=0) == []
    cache.close()
    assert [Path(removal.path).name for removal in collect_garbage(tmp_path, grace_s=0)] == before
    assert_holds(ReferenceCache(tmp_path, IDENTITY).open(), rows)


def test_one_compacts_at_a_time(tmp_path: Path) -> None:
    cache = write(tmp_path)
    whole = everything(cache.folder / "shards")
    with claimed(cache.claims, "compaction"), pytest.raises(UserError, match="compacted by another process"):
        compact_cache(cache.folder)
    assert everything(cache.folder / "shards") == whole


def test_a_cache_that_is_open_or_claimed_is_no_old_one(tmp_path: Path) -> None:
    cache = write(tmp_path)
    reader = OpenReader(cache.folder)
    age(tmp_path, 30)
    assert collect_garbage(tmp_path, older_than_days=7) == []
    reader.close()
    with claimed(cache.claims, "first"):
        age(tmp_path, 30)
        assert collect_garbage(tmp_path, older_than_days=7) == [], "nor is a claim of a living process a leftover"
    age(tmp_path, 30)
    assert [removal.path for removal in collect_garbage(tmp_path, older_than_days=7)] == [cache.folder]


def test_a_reader_ends_with_its_process(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        reader = OpenReader(tmp_path)
        reader.found(["m"], "i")
        os.write(writing, b"x")
        time.sleep(600)
    os.read(reading, 1)
    ((merged, index),) = [(reach.merged, reach.index) for reach in open_readers(tmp_path, clear=True)]
    assert (merged, index) == ({"m"}, "i")
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert open_readers(tmp_path) == []
    assert len(list((tmp_path / ".readers").iterdir())) == 1
    assert open_readers(tmp_path, clear=True) == []
    assert list((tmp_path / ".readers").iterdir()) == []


def test_a_forked_child_neither_keeps_nor_ends_the_reader_of_its_parent(tmp_path: Path) -> None:
    reader = OpenReader(tmp_path)
    child = os.fork()
    if not child:
        reader.close()
        del reader
        os._exit(0)
    os.waitpid(child, 0)
    assert len(open_readers(tmp_path, clear=True)) == 1
    del reader
    assert list((tmp_path / ".readers").iterdir()) == []
