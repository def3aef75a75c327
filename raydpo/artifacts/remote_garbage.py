"""What can go from reference caches in an object store: objects that the log does not reach.

Comes in: the address of a cache directory. Goes out: what was removed, or in a dry run would be. Decision: what is about to be
removed is named by an entry of the log first, which is put if nobody was there before. So a driver whose entry was before it
keeps its object, and one that comes after it finds that its object was given up and puts another; no clock decides. A reader
for whom an object went while it was fetched finds in the log what replaced it. The price is that all objects are listed.
"""

from __future__ import annotations

import time
import uuid

from raydpo.artifacts.cache_log import CacheState, state_after
from raydpo.artifacts.commit_log import CommitLog, entry_name
from raydpo.artifacts.garbage import Removal
from raydpo.artifacts.mirror_path import local_path
from raydpo.artifacts.object_store import ObjectStore, StoreFolder
from raydpo.artifacts.placeholder import store_at
from raydpo.artifacts.remote_cache import cache_urls, name_snapshot, read_entries

SNAPSHOT_EVERY = 64
"""Entries of the log."""
_SHARDS, _LOG = "shards", "log"


def collect_stored(url: str, *, grace_s: float, dry_run: bool = False) -> list[Removal]:
    """Remove objects of the caches below `url` that count no longer, or never did, and are older than `grace_s`. Raises
    StorageError."""
    return [removal for cache in cache_urls(url) for removal in _collect(cache, grace_s, dry_run)]


def _collect(url: str, grace_s: float, dry_run: bool) -> list[Removal]:
    store, folder = store_at(url), local_path(url)
    log = CommitLog(StoreFolder(store, _LOG))
    while True:
        entries = read_entries(folder, url)
        state = state_after(entries)
        doomed = _doomed(store, state, grace_s)
        fresh = sorted(doomed.keys() - state.removed)
        number = entries[-1][0] + 1 if entries else 1
        if dry_run or not fresh or log.put(number, {"removed": fresh, "id": uuid.uuid4().hex}):
            break
    if not dry_run:
        store.delete(sorted(doomed))
        _take_snapshot(url, store, log)
    return [Removal(f"{url}/{key}", num_bytes, _reason(key, state)) for key, num_bytes in sorted(doomed.items())]


def _take_snapshot(url: str, store: ObjectStore, log: CommitLog) -> None:
    """Say everything that counts in one entry, where there are many since the last that did."""
    entries = read_entries(local_path(url), url)
    taken = [at for at, (_, entry) in enumerate(entries, 1) if "snapshot" in entry]
    if len(entries) - max(taken, default=0) > SNAPSHOT_EVERY:
        number = entries[-1][0] + 1
        if log.put(number, {**state_after(entries).snapshot(), "id": uuid.uuid4().hex}):
            name_snapshot(store, number)


def _doomed(store: ObjectStore, state: CacheState, grace_s: float) -> dict[str, int]:
    """Key -> bytes of what may go. What an entry gave up may go at once: a collector died before it removed it."""
    now, live = time.time(), {held.key for held in state.shards.values()}
    found, old = dict[str, int](), _Age(store, now, grace_s)
    for key, num_bytes, changed_s in store.dated(_SHARDS):
        is_old = now - changed_s >= grace_s and (key not in state.let_go or old.is_old(state.let_go[key]))
        if key not in live and (is_old or key in state.removed):
            found[key] = num_bytes
    return found


class _Age:
    """Whether entries of the log are older than the grace. They are listed when the first is asked for."""

    def __init__(self, store: ObjectStore, now: float, grace_s: float) -> None:
        self._store, self._now, self._grace_s = store, now, grace_s
        self._dates: dict[str, float] | None = None

    def is_old(self, number: int) -> bool:
        if self._dates is None:
            self._dates = {key: changed_s for key, _, changed_s in self._store.dated(_LOG)}
        changed_s = self._dates.get(f"{_LOG}/{entry_name(number)}", self._now)
        return self._now - changed_s >= self._grace_s


def _reason(key: str, state: CacheState) -> str:
    return "shard that another one replaced" if key in state.let_go else "object that no entry of the log reaches"
