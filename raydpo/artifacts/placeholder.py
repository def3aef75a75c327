"""A file of a working copy that is not here yet: a link that leads nowhere and says which object it stands for.

Comes in: paths below a working copy. Goes out: the files, fetched and verified. Decision: the link carries address, size and
hash, so that a folder full of them can be moved, removed and listed like any other, and any process of any node can fetch
one; whoever reads one that was not fetched gets an error, not zeros. The price is a call of `fetch` before what may be one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from raydpo.artifacts.digest import file_sha256
from raydpo.artifacts.durable import whole_copy
from raydpo.artifacts.mirror_path import url_of
from raydpo.artifacts.node_lock import once_a_node
from raydpo.artifacts.object_store import PARALLEL, ObjectStore
from raydpo.errors import IntegrityError

_START = "raydpo-object:"


@dataclass(frozen=True)
class Stored:
    """What an object store holds of a file.

    key: of the object, below the address of the run directory or cache.
    bytes: its size.
    sha256: of its content.
    """

    key: str
    bytes: int
    sha256: str


def leave_out(path: Path, url: str, stored: Stored) -> None:
    """Put a placeholder for an object of the store at `url` in the place of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        path.unlink()
    path.symlink_to(f"{_START}{stored.bytes}:{stored.sha256}:{url}#{stored.key}")


def left_out(path: Path) -> tuple[str, Stored] | None:
    """(address of the store, object) of a placeholder; None for anything else."""
    try:
        text = os.readlink(path)
    except OSError:
        return None
    if not text.startswith(_START):
        return None
    size, sha256, place = text.removeprefix(_START).split(":", 2)
    url, _, key = place.partition("#")
    return url, Stored(key, int(size), sha256)


def fetch(path: Path) -> None:
    """Fetch what is left out of the file or folder `path`. Nothing is done outside of working copies.

    Raises StorageError, and IntegrityError where the store holds other bytes than were committed.
    """
    if url_of(path) is None:
        return
    files = path.rglob("*") if path.is_dir() else [path]
    fetch_files([file for file in files if file.is_symlink()])


def fetch_files(paths: Iterable[Path]) -> None:
    """Fetch every placeholder among `paths`, several at a time."""
    with ThreadPoolExecutor(PARALLEL // 2) as threads:
        list(threads.map(_fetch, paths))


def _fetch(path: Path) -> None:
    if left_out(path) is None:
        return
    with once_a_node(path):
        if (found := left_out(path)) is not None:
            url, stored = found
            fetch_object(store_at(url), stored, path)


def fetch_object(store: ObjectStore, stored: Stored, path: Path) -> None:
    """Put the content of an object in the place of `path`. Raises IntegrityError, and leaves it as it is, where the store holds
    other bytes than were committed."""
    with whole_copy(path, stored.bytes) as temporary:
        is_there = store.fetch(stored.key, temporary, stored.bytes)
        if not is_there or file_sha256(temporary) != stored.sha256:
            fault = "differs from what was committed (sha256)" if is_there else "is missing"
            raise IntegrityError(f"{store.url}/{stored.key} {fault}")


@lru_cache(maxsize=32)
def store_at(url: str) -> ObjectStore:
    """The store at `url`, one client in a process."""
    return ObjectStore(url)


os.register_at_fork(after_in_child=store_at.cache_clear)
