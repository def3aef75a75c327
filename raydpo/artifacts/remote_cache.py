"""A reference cache in an object store: shards as objects, and a numbered log whose entries are their commit records.

Comes in: the working copy of a cache on this machine. Goes out: the shards that the log names, fetched and verified, or one
more of them. Decision: every number of the log is put once, if nobody was there before, so any number of runs add shards
without a lock, and a reader finds all of them by counting up, whatever a listing says. Entries never change and are kept on
this machine. The price is a request a shard for who has none of them.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from raydpo.artifacts.cache_lock import writing
from raydpo.artifacts.cache_log import HeldShard, removed_by, replaced_by, state_after
from raydpo.artifacts.commit_log import CommitLog, entry_name
from raydpo.artifacts.digest import file_sha256
from raydpo.artifacts.durable import write_bytes, write_json
from raydpo.artifacts.mirror_path import local_path, url_of
from raydpo.artifacts.node_lock import once_a_node
from raydpo.artifacts.object_store import PARALLEL, ObjectStore, StoreFolder
from raydpo.artifacts.placeholder import Stored, fetch_object, store_at
from raydpo.artifacts.replaced import write_replaced
from raydpo.errors import IntegrityError

_LOG = ".log"
"""Folder of the entries that this machine knows."""
_IDENTITY = "identity.json"
_SNAPSHOT = "snapshot.json"
"""A hint: the number of an entry that says everything that counts."""
_FEWEST, _MOST = 4, 64
"""Entries that are asked for at one time: twice as many each time that all were there."""


def pull_cache(folder: Path) -> None:
    """Fetch every shard that the store holds and `folder`, a working copy, does not. Nothing is done for other folders.

    One whose bytes are not what was committed is left out: its rows are scored again.
    """
    if (url := url_of(folder)) is None:
        return
    entries, num_before = read_entries(folder, url), 0
    while len(entries) > num_before:  # what is not there may have been replaced, and removed, meanwhile
        held = state_after(entries).shards
        with ThreadPoolExecutor(PARALLEL) as threads:
            is_whole = all(list(threads.map(lambda item: _fetch(folder, url, *item), held.items())))
        num_before = len(entries)
        entries = entries if is_whole else read_entries(folder, url)
    if entries and not (folder / _IDENTITY).is_file() and (identity := store_at(url).get(_IDENTITY)) is not None:
        write_bytes(folder / _IDENTITY, identity)


def cache_urls(url: str) -> list[str]:
    """Addresses of all caches below `url`."""
    names = {key.partition("/")[0] for key, _, _ in store_at(url).listed()}
    return [f"{url.rstrip('/')}/{name}" for name in sorted(names) if re.fullmatch("[0-9a-f]{32}", name)]


def pull_caches(url: str) -> Path:
    """Fetch every cache below `url`: the folder of their working copies."""
    for cache in cache_urls(url):
        pull_cache(local_path(cache))
    return local_path(url)


def push_shard(folder: Path, name: str, record: Mapping[str, Any], replaces: Mapping[str, str] | None = None) -> bool:
    """Add shard `name`, whose file is in `folder`, to the store. record: as in its commit record. replaces: name -> file of
    shards that count no longer; False where one of them did not any more. True for other folders.

    The object has a name of its own, which no entry before the first one that is tried can have given up.
    """
    if (url := url_of(folder)) is None:
        return True
    store, number = store_at(url), CommitLog(folder / _LOG).newest() + 1
    log = CommitLog(StoreFolder(store, "log"))
    if replaces and state_after(read_entries(folder, url, up_to=number - 1)).is_overtaken(replaces):
        return False
    if number == 1:
        store.put(_IDENTITY, folder / _IDENTITY)
    entry = {"shard": name, "record": dict(record), "id": uuid.uuid4().hex}
    more = {"replaces": dict(replaces)} if replaces else {}
    key = _upload(store, folder / "shards" / str(record["name"]))
    while not log.put(number, {**entry, "object": key, **more}):
        taken = log.read(number) or {}
        if replaces and set(replaces.values()) & set(replaced_by(taken).values()):
            return False
        if key in removed_by(taken):  # a collector took it for one that nobody will commit
            key = _upload(store, folder / "shards" / str(record["name"]))
        number += 1
    return True


def _upload(store: ObjectStore, path: Path) -> str:
    """Key of a new object with the content of a shard."""
    key = f"shards/{path.name}.{uuid.uuid4().hex[:12]}"
    store.put(key, path)
    return key


def read_entries(folder: Path, url: str, *, up_to: int | None = None) -> list[tuple[int, dict[str, Any]]]:
    """Entries of the log at `url` with their numbers, from 1 or a snapshot on, {} for one that cannot be read. Those that are
    new to this machine are kept on it.

    up_to: a number that this machine has; the store is not asked for more.
    """
    log, store = CommitLog(folder / _LOG), store_at(url)
    known = log.newest() if up_to is None else up_to
    if up_to is None:
        remote = StoreFolder(store, "log")
        if known and remote.read(entry_name(known)) != log.place.read(entry_name(known)):
            shutil.rmtree(folder / _LOG)  # of a cache that was removed there, and begun anew
            known = 0
        known = _keep_new(folder, remote, known or _keep_snapshot(folder, store))
    kept, first = set(log.place.names()), known
    while entry_name(first - 1) in kept:  # another process of this machine may be keeping older ones just now
        first -= 1
    return [(number, log.read(number) or {}) for number in range(max(1, first), known + 1)]


def name_snapshot(store: ObjectStore, number: int) -> None:
    """Let machines that have nothing of a cache begin to read its log at entry `number`, which is a snapshot."""
    store.put(_SNAPSHOT, json.dumps({"number": number}).encode())


def _keep_snapshot(folder: Path, store: ObjectStore) -> int:
    """Keep the snapshot that the store names, which may be an old one; its number, 0 for none."""
    try:
        number = int(json.loads(store.get(_SNAPSHOT) or b"")["number"])
        data = StoreFolder(store, "log").read(entry_name(number)) or b""
        if "snapshot" not in json.loads(data):
            return 0
    except (ValueError, KeyError, TypeError):
        return 0
    write_bytes(folder / _LOG / entry_name(number), data)
    return number


def _keep_new(folder: Path, remote: StoreFolder, known: int) -> int:
    """Keep the entries above `known`; the number of the last one."""
    with ThreadPoolExecutor(PARALLEL) as threads:
        is_more, window = True, _FEWEST
        while is_more:
            numbers, window = range(known + 1, known + 1 + window), min(2 * window, _MOST)
            for number, data in zip(numbers, threads.map(remote.read, map(entry_name, numbers)), strict=True):
                is_more = data is not None
                if data is None:
                    break
                write_bytes(folder / _LOG / entry_name(number), data)
                known = number
    return known


def _fetch(folder: Path, url: str, name: str, held: HeldShard) -> bool:
    """Whether the shard is here."""
    path, record = folder / "shards" / str(held.record["name"]), held.record

    def is_whole() -> bool:
        return path.is_file() and path.stat().st_size == record["bytes"]

    if is_whole() and path.with_name(f"{name}.json").is_file():
        return True
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with once_a_node(path), writing(folder):
            if not is_whole() or file_sha256(path) != record["sha256"]:
                fetch_object(store_at(url), Stored(held.key, record["bytes"], record["sha256"]), path)
            if held.replaces:
                write_replaced(folder, name, path.name, held.replaces)
            write_json(path.with_name(f"{name}.json"), record)
    except IntegrityError:
        return False
    return True
