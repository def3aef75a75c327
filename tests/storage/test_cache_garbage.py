"""Compaction and collection of a cache in a store: what the log reaches stays, what it does not goes, and order decides."""

from __future__ import annotations

from pathlib import Path

import pytest

from raydpo import cli
from raydpo.artifacts import ReferenceCache, compact_cache, local_path, remote_garbage
from raydpo.artifacts.cache_log import state_after
from raydpo.artifacts.object_store import ObjectStore
from raydpo.artifacts.remote_cache import push_shard, read_entries
from raydpo.artifacts.remote_garbage import collect_stored
from tests.storage.test_cache_and_inputs import IDENTITY, KEYS, Move, cache, machine, nats, write

__all__ = ["machine"]


def store_of(bucket: str) -> ObjectStore:
    return ObjectStore(f"{bucket}/cache/{IDENTITY.digest}")


def objects(bucket: str) -> set[str]:
    return {key for key, _, _ in store_of(bucket).listed("shards")}


def assert_whole(bucket: str, num_rows: int) -> None:
    opened = cache(bucket).open()
    assert opened.damaged == []
    assert opened.missing(KEYS[:num_rows]) == []
    assert [found.tolist() for found in opened.lookup(KEYS[:num_rows])] == [nats(n).tolist() for n in range(num_rows)]
    opened.close()


def test_a_machine_that_comes_later_fetches_the_merged_shard_alone(bucket: str, machine: Move) -> None:
    machine("one")
    for shard in range(3):
        write(cache(bucket), shard)
    machine("two")
    assert_whole(bucket, 30)
    machine("one")
    done = compact_cache(cache(bucket).folder)
    assert (done.shards_before, done.shards) == (3, 1)
    assert_whole(bucket, 30)
    machine("three")
    assert_whole(bucket, 30)
    (file,) = (cache(bucket).folder / "shards").glob("*.arrow")
    assert file.name.startswith("0-merged-")
    write(cache(bucket), 3)
    machine("two")
    assert_whole(bucket, 40)
    assert compact_cache(cache(bucket).folder).shards == 1
    machine("one")
    assert_whole(bucket, 40)


def test_what_the_log_does_not_reach_goes_after_the_grace(
    bucket: str, machine: Move, capsys: pytest.CaptureFixture[str]
) -> None:
    machine("one")
    for shard in range(3):
        write(cache(bucket), shard)
    compact_cache(cache(bucket).folder)
    store_of(bucket).put("shards/of-one-that-was-killed.arrow.0", b"x" * 9)
    before = objects(bucket)
    assert len(before) == 5
    assert collect_stored(f"{bucket}/cache", grace_s=3600) == []
    listed = collect_stored(f"{bucket}/cache", grace_s=-60, dry_run=True)
    assert objects(bucket) == before
    assert sorted(removal.reason for removal in listed) == [
        "object that no entry of the log reaches",
        *["shard that another one replaced"] * 3,
    ]
    assert cli.main(["cache", "gc", "--cache-dir", f"{bucket}/cache", "--older-than-days", "3"]) == 2
    assert "is an object store, where nobody knows" in capsys.readouterr().err
    assert [removal.path for removal in collect_stored(f"{bucket}/cache", grace_s=-60)] == [
        removal.path for removal in listed
    ]
    (left,) = objects(bucket)
    assert left.startswith("shards/0-merged-")
    assert collect_stored(f"{bucket}/cache", grace_s=-60) == []
    for name in ("one", "two"):
        machine(name)
        assert_whole(bucket, 30)
    assert cli.main(["cache", "gc", "--cache-dir", f"{bucket}/cache"]) == 0


def test_an_object_that_is_given_up_before_its_entry_is_put_again(
    bucket: str, machine: Move, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("one")
    write(cache(bucket), 0)
    real = ObjectStore.put_if_absent
    collected = list[str]()

    def collected_first(store: ObjectStore, key: str, data: bytes) -> bool:
        if key.startswith("log/") and b'"shard"' in data and not collected:
            collected.append(key)
            machine("collector")
            assert len(collect_stored(f"{bucket}/cache", grace_s=-60)) == 1
            machine("one")
        return real(store, key, data)

    monkeypatch.setattr(ObjectStore, "put_if_absent", collected_first)
    write(cache(bucket), 1)
    assert len(collected) == 1
    machine("two")
    assert_whole(bucket, 20)


def test_a_collector_that_finds_an_entry_before_its_own_looks_again(
    bucket: str, machine: Move, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("one")
    write(cache(bucket), 0)
    write(cache(bucket), 1)
    late = cache(bucket)
    store_of(bucket).put("shards/late.0", b"x")
    real, done = ObjectStore.put_if_absent, list[str]()

    def entered_first(store: ObjectStore, key: str, data: bytes) -> bool:
        if b'"removed"' in data and not done:
            done.append(key)
            machine("one")
            write(late, 2)
            machine("collector")
        return real(store, key, data)

    monkeypatch.setattr(ObjectStore, "put_if_absent", entered_first)
    machine("collector")
    assert [str(removal.path).rpartition("/")[2] for removal in collect_stored(f"{bucket}/cache", grace_s=-60)] == [
        "late.0"
    ]
    machine("two")
    assert_whole(bucket, 30)


def test_a_reader_for_whom_an_object_went_finds_what_replaced_it(
    bucket: str, machine: Move, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("one")
    for shard in range(3):
        write(cache(bucket), shard)
    real, done = ObjectStore.fetch, list[str]()

    def gone(store: ObjectStore, key: str, path: Path, num_bytes: int) -> bool:
        if not done:
            done.append(key)
            machine("one")
            compact_cache(cache(bucket).folder)
            collect_stored(f"{bucket}/cache", grace_s=-60)
            machine("two")
        return real(store, key, path, num_bytes)

    machine("two")
    monkeypatch.setattr("raydpo.artifacts.remote_cache.PARALLEL", 1)
    monkeypatch.setattr(ObjectStore, "fetch", gone)
    assert_whole(bucket, 30)
    assert len(done) == 1


def test_of_two_machines_that_compact_one_is_overtaken(
    bucket: str, machine: Move, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("one")
    for shard in range(3):
        write(cache(bucket), shard)
    machine("two")
    assert_whole(bucket, 30)
    write(cache(bucket), 3)
    real = ReferenceCache.merge_shards
    monkeypatch.setattr(ReferenceCache, "merge_shards", lambda *args: _other_first(bucket, machine, real, *args))
    compact_cache(cache(bucket).folder)
    entries = read_entries(cache(bucket).folder, store_of(bucket).url)
    assert sum("replaces" in entry for _, entry in entries) == 1
    assert sum(key.startswith("0-merged-") for key in state_after(entries).shards) == 1
    machine("three")
    assert_whole(bucket, 40)


def _other_first(bucket: str, machine: Move, real: object, self: ReferenceCache, *args: object) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReferenceCache, "merge_shards", real)
        machine("one")
        compact_cache(cache(bucket).folder)
        machine("two")
    return real(self, *args)  # type: ignore[operator]


def test_a_machine_that_has_nothing_begins_at_a_snapshot(
    bucket: str, machine: Move, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_garbage, "SNAPSHOT_EVERY", 3)
    machine("one")
    for shard in range(3):
        write(cache(bucket), shard)
    compact_cache(cache(bucket).folder)
    assert len(collect_stored(f"{bucket}/cache", grace_s=-60)) == 3
    write(cache(bucket), 3)
    machine("two")
    assert_whole(bucket, 40)
    numbers = [number for number, _ in read_entries(cache(bucket).folder, store_of(bucket).url)]
    assert numbers == [6, 7], "3 shards, the merged one, what was removed; the snapshot, and one more shard"
    machine("one")
    assert_whole(bucket, 40)
    assert collect_stored(f"{bucket}/cache", grace_s=-60) == []
    for hint in (b"", b"[]", b'{"number": 3}', b'{"number": 99}'):
        store_of(bucket).put("snapshot.json", hint)
        machine(f"of {len(hint)} {hint[-3:]!r}")
        assert_whole(bucket, 40)


def test_a_cache_that_was_removed_and_begun_anew_is_read_anew(bucket: str, machine: Move) -> None:
    machine("one")
    write(cache(bucket), 1)
    write(cache(bucket), 2)
    store = store_of(bucket)
    store.delete([key for key, _, _ in store.listed()])
    machine("two")
    for shard in range(3):
        write(cache(bucket), shard)
    machine("one")
    assert collect_stored(f"{bucket}/cache", grace_s=-60) == []
    write(cache(bucket), 3)
    machine("three")
    assert_whole(bucket, 40)


def test_runs_in_a_store_name_the_caches_that_they_reach(bucket: str, machine: Move, tmp_path: Path) -> None:
    from raydpo.artifacts.reached import reached_caches

    ObjectStore(f"{bucket}/runs").put("one/reference.json", b'{"cache": "x", "identity": "abc"}')
    run = tmp_path / "runs" / "two"
    run.mkdir(parents=True)
    (run / "reference.json").write_text('{"cache": "x", "identity": "def"}')
    assert reached_caches([f"{bucket}/runs", str(tmp_path / "runs"), str(run)]) == {"abc", "def"}
    (run / "reference.json").write_text("{")
    with pytest.raises(Exception, match="nobody knows which cache its run reaches"):
        reached_caches([str(run)])


def test_a_shard_of_a_folder_is_pushed_nowhere(tmp_path: Path) -> None:
    assert push_shard(tmp_path, "s", {"name": "s"})
    assert local_path(str(tmp_path)) == tmp_path
