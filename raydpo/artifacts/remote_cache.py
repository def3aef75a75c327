"""A reference cache in an object store: shards as objects, and a numbered log whose entries are their commit records.

Comes in: the working copy of a cache on this machine. Goes out: the shards that the log names, fetched and verified, or one
more of them. Decision: every number of the log is put once, if nobody was there before, so any number of runs add shards
without a lock, and a reader finds all of them by counting up, whatever a listing says. Entries never change and are kept on
this machine. The price is a request a shard for who has none of them.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from raydpo.artifacts.commit_log import CommitLog, DiskFolder, entry_name
from raydpo.artifacts.durable import write_bytes, write_json
from raydpo.artifacts.mirror_path import local_path, url_of
from raydpo.artifacts.node_lock import once_a_node
from raydpo.artifacts.object_store import PARALLEL, StoreFolder
from raydpo.artifacts.placeholder import Stored, fetch_object, store_at
from raydpo.errors import IntegrityError

_LOG = ".log"
"""Folder of the entries that this machine knows."""
_IDENTITY = "identity.json"
_FEWEST, _MOST = 4, 64
"""Entries that are asked for at one time: twice as many each time that all were there."""


def pull_cache(folder: Path) -> None:
    """Fetch every shard that the store holds and `folder`, a working copy, does not. Nothing is done for other folders.

    One whose bytes are not what was committed is left out: its rows are scored again.
    """
    if (url := url_of(folder)) is None:
        return
    entries = _entries(folder, url)
    with ThreadPoolExecutor(PARALLEL) as threads:
        list(threads.map(lambda item: _fetch(folder, url, *item), entries.items()))
    if entries and not (folder / _IDENTITY).is_file() and (identity := store_at(url).get(_IDENTITY)) is not None:
        write_bytes(folder / _IDENTITY, identity)


def pull_caches(url: str) -> Path:
    """Fetch every cache below `url`: the folder of their working copies."""
    names = {key.partition("/")[0] for key, _, _ in store_at(url).listed()}
    for name in sorted(name for name in names if re.fullmatch("[0-9a-f]{32}", name)):
        pull_cache(local_path(url) / name)
    return local_path(url)


def push_shard(folder: Path, name: str, record: Mapping[str, Any]) -> None:
    """Add shard `name`, whose files are in `folder`, to the store. record: as in its commit record."""
    if (url := url_of(folder)) is None:
        return
    store, kept = store_at(url), CommitLog(folder / _LOG)
    log = CommitLog(StoreFolder(store, "log"))
    store.put(f"shards/{record['name']}", folder / "shards" / str(record["name"]))
    number = kept.newest() + 1
    if number == 1:
        store.put(_IDENTITY, folder / _IDENTITY)
    entry = {"shard": name, "record": dict(record), "id": uuid.uuid4().hex}
    while not log.put(number, entry):
        number += 1


def _entries(folder: Path, url: str) -> dict[str, dict[str, Any]]:
    """Shard -> the commit record that counts, the last one. Entries that are new to this machine are kept on it."""
    remote, kept = StoreFolder(store_at(url), "log"), DiskFolder(folder / _LOG)
    known = CommitLog(kept).newest()
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
    found = {}
    for number in range(1, known + 1):
        with suppress(ValueError, KeyError, TypeError):
            entry = json.loads(kept.read(entry_name(number)) or b"")
            found[str(entry["shard"])] = dict(entry["record"])
    return found


def _fetch(folder: Path, url: str, name: str, record: dict[str, Any]) -> None:
    path = folder / "shards" / str(record["name"])

    def is_here() -> bool:
        is_whole = path.is_file() and path.stat().st_size == record["bytes"]
        return is_whole and path.with_name(f"{name}.json").is_file()

    if is_here():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with once_a_node(path), suppress(IntegrityError):
        if not is_here():
            fetch_object(store_at(url), Stored(f"shards/{path.name}", record["bytes"], record["sha256"]), path)
            write_json(path.with_name(f"{name}.json"), record)
