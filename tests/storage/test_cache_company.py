"""Two drivers, a compactor, a collector and readers at one cache: whatever counts, or is open, is never removed.

On folders, and in a store: obstore's own in memory, with the conditions of the others and without their network.
"""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from hypothesis.strategies import booleans, integers, sampled_from
from obstore.store import MemoryStore

from raydpo.artifacts import ReferenceCache, cache_shards, collect_garbage, compact_cache, object_store, remote_garbage
from raydpo.artifacts.cache_log import state_after
from raydpo.artifacts.cache_reader import CacheReader
from raydpo.artifacts.mirror_path import ROOT_VARIABLE
from raydpo.artifacts.object_store import ObjectStore
from raydpo.artifacts.placeholder import store_at
from raydpo.artifacts.remote_cache import cache_urls, read_entries
from raydpo.artifacts.remote_garbage import collect_stored
from tests.artifacts.golden import IDENTITY

MACHINES = sampled_from(["one", "two"])
_NUMBERS = itertools.count()
_stores: dict[str, MemoryStore] = {}


def keys_of(shard: int) -> list[str]:
    """Three rows, the last of which the next shard has, too."""
    return [f"{2 * shard + number:032x}" for number in range(3)]


def value_of(key: str, machine: str) -> np.ndarray:
    """Machines compute a little different values."""
    return np.full(2, -1 - int(key, 16) - (0.25 if machine == "two" else 0), np.float32)


def client_at(url: str) -> MemoryStore:
    """Of a cache its store; of the folder of caches one that lists them."""
    if url.rpartition("/")[2] == IDENTITY.digest:
        above = _stores.setdefault(url.rpartition("/")[0], MemoryStore())
        above.put(f"{IDENTITY.digest}/identity.json", b"{}")
    return _stores.setdefault(url, MemoryStore())


class Company(RuleBasedStateMachine):
    """caches: folder of the cache for each machine. rows: key -> what a lookup may give."""

    is_stored = False

    @initialize()
    def start(self) -> None:
        """Three shards are there."""
        self.root = Path(mkdtemp())
        self.url = f"s3://memory/cache-{next(_NUMBERS)}"
        self.rows = set[str]()
        self.readers: list[tuple[CacheReader, set[str], dict[str, bytes]]] = []
        for shard in range(3):
            self.write("one", shard)

    def place(self, machine: str) -> Path:
        return (
            self.root / machine / "raydpo-store" / self.url.replace("://", "/")
            if self.is_stored
            else self.root / "caches"
        )

    def cache(self, machine: str) -> ReferenceCache:
        return ReferenceCache(self.place(machine), IDENTITY)

    @rule(machine=MACHINES, shard=integers(0, 7))
    def write(self, machine: str, shard: int) -> None:
        keys = keys_of(shard)
        self.cache(machine).write_shard(f"s{shard}", keys, [value_of(key, machine) for key in keys])
        self.rows |= set(keys)

    @rule(machine=MACHINES, shard=integers(0, 7))
    def die_before_the_record(self, machine: str, shard: int) -> None:
        """A driver puts its rows there and is killed before they count; on folders, what it leaves has no record."""
        cache = self.cache(machine)
        record = cache._write_file(f"s{shard}", keys_of(shard), [np.full(2, -99, np.float32)] * 3)
        if self.is_stored:
            self.store().put(f"shards/{record.name}.killed", cache.folder / "shards" / record.name)

    @rule(machine=MACHINES, merged_bytes=sampled_from([250, 1000, 1 << 20]))
    def compact(self, machine: str, merged_bytes: int) -> None:
        cache = self.cache(machine)
        before = dict(zip(sorted(self.rows), cache.open().lookup(sorted(self.rows)), strict=True))
        cache.close()
        if self.rows:
            compact_cache(cache.folder, merged_bytes)
        after = dict(zip(sorted(self.rows), cache.open().lookup(sorted(self.rows)), strict=True))
        cache.close()
        assert {key: nats.tobytes() for key, nats in before.items()} == {
            key: nats.tobytes() for key, nats in after.items()
        }

    @rule(machine=MACHINES, dry_run=booleans())
    def collect(self, machine: str, dry_run: bool) -> None:
        """Without any grace: order has to do."""
        if self.is_stored:
            os.environ[ROOT_VARIABLE] = str(self.root / machine)
            assert cache_urls(self.url) == [self.store().url]
            collect_stored(self.url, grace_s=-9, dry_run=dry_run)
        collect_garbage(self.place(machine), grace_s=-9, dry_run=dry_run)

    @rule(machine=MACHINES, merged_bytes=sampled_from([1000, 1 << 20]))
    def compact_and_collect(self, machine: str, merged_bytes: int) -> None:
        self.compact(machine, merged_bytes)
        self.collect(machine, dry_run=False)

    @rule(machine=MACHINES)
    def lose_the_machine(self, machine: str) -> None:
        """What a store holds is the truth; of a folder nothing is lost but who read it."""
        self.let_go()
        if self.is_stored:
            shutil.rmtree(self.root / machine, ignore_errors=True)

    @rule(machine=MACHINES, is_indexed=booleans())
    def open_reader(self, machine: str, is_indexed: bool) -> None:
        cache = self.cache(machine).open()
        cache.write_index(is_due=is_indexed)
        cache.close()
        if cache.folder.is_dir():
            there = {
                record.name: (cache.folder / "shards" / record.name).read_bytes()
                for record in [shard.record for shard in cache.shards().values()]
            }
            self.readers.append((CacheReader(cache.folder), set(self.rows), there))

    @precondition(lambda self: self.readers)
    @rule()
    def let_go(self) -> None:
        for reader, *_ in self.readers:
            reader.close()
        self.readers.clear()

    @precondition(lambda self: self.readers and not self.is_stored)
    @rule(data=integers(0, 99))
    def read(self, data: int) -> None:
        reader, rows, _ = self.readers[data % len(self.readers)]
        for key, nats in zip(sorted(rows), reader.lookup(sorted(rows)), strict=True):
            assert nats.tolist() in ([*value_of(key, "one")], [*value_of(key, "two")])

    @invariant()
    def what_a_reader_found_is_there(self) -> None:
        for reader, _, there in getattr(self, "readers", []):
            shards = reader._folder / "shards"
            assert {name: (shards / name).read_bytes() for name in there} == there

    @invariant()
    def every_row_that_was_committed_is_there(self) -> None:
        for machine in ("one", "two") if hasattr(self, "rows") else ():
            cache = self.cache(machine).open()
            assert cache.damaged == []
            assert cache.missing(sorted(self.rows)) == []
            assert set(cache.table()["row_key"].to_pylist()) == self.rows
            for key, nats in zip(sorted(self.rows), cache.lookup(sorted(self.rows)), strict=True):
                assert nats.tolist() in ([*value_of(key, "one")], [*value_of(key, "two")]), "of nobody who was killed"
            cache.close()

    @invariant()
    def the_log_reaches_objects_that_are_there(self) -> None:
        if self.is_stored and hasattr(self, "rows"):
            entries = read_entries(self.cache("one").folder, self.store().url)
            for held in state_after(entries).shards.values():
                assert len(self.store().get(held.key) or b"") == held.record["bytes"]

    def store(self) -> ObjectStore:
        return store_at(f"{self.url}/{IDENTITY.digest}")

    def teardown(self) -> None:
        if hasattr(self, "readers"):
            self.let_go()
            shutil.rmtree(self.root, ignore_errors=True)


class StoredCompany(Company):
    """The same with a cache in a store, of which each machine has a working copy."""

    is_stored = True


@pytest.mark.parametrize("company", [Company, StoredCompany])
def test_nothing_that_counts_or_is_open_is_removed(
    company: type[Company], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "_client", client_at)
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    monkeypatch.setattr(cache_shards, "_MOST_MAPPED", 2)
    monkeypatch.setattr(remote_garbage, "SNAPSHOT_EVERY", 4)
    store_at.cache_clear()
    run_state_machine_as_test(
        company, settings=settings(max_examples=20, stateful_step_count=16, deadline=None, derandomize=True)
    )
    store_at.cache_clear()
