"""A process on another node than the driver's: what it reads of a working copy there, and what it hands over.

Comes in: a path of the driver's working copy, which is the same on every node. Goes out: the files, as the log in the store has
them; and objects for files that were written here, which the driver commits. Decision: who works next to the driver is told
by its lock, which the kernel keeps: where it is held, files are the driver's own, and nothing is asked of the store. The
price is a look at the log for each folder that is read elsewhere.
"""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from raydpo.artifacts.commit_log import CommitLog
from raydpo.artifacts.digest import file_sha256
from raydpo.artifacts.input_copies import bring_input
from raydpo.artifacts.mirror_path import is_input, url_of
from raydpo.artifacts.object_store import PARALLEL, ObjectStore, StoreFolder
from raydpo.artifacts.placeholder import Stored, leave_out, store_at
from raydpo.artifacts.run_tree import read_tree
from raydpo.artifacts.working_copy import WorkingCopy

Handed = tuple[str, str, int, str]
"""Address of the store, key, bytes and SHA-256 of a file that was handed over."""


def bring(path: Path) -> None:
    """Make the file or folder `path` of a working copy, or of a copy of inputs, what the store has, unless the driver works
    here. Of the processes of a machine that ask, one fetches. Nothing is done for other paths."""
    url = url_of(path)
    if url is None or is_home(path):
        return
    if is_input(path):
        bring_input(path)
        return
    if (found := _run_of(path)) is None:
        return
    root, store, log = found
    name = path.relative_to(root).as_posix()
    tree = read_tree(log, log.newest())
    with _alone(root):
        copy = WorkingCopy(root, store.url)
        copy.reconcile(tree, name)
        copy.keep_state(tree)


def is_home(path: Path) -> bool:
    """Whether the driver of the run directory that `path` lies in works on the files of this machine, or on a disk that is
    shared with it."""
    return any(_is_held(parent / "lock") for parent in (path, *path.parents))


def hand_over(folder: Path, hashed: Mapping[str, tuple[int, str]], names: Iterator[str]) -> dict[str, Handed]:
    """Put files of `folder` where the driver finds them: name -> object; none where the driver works here.

    hashed: (bytes, SHA-256) of files that were hashed while they were written.
    """
    if url_of(folder) is None or is_home(folder) or (found := _run_of(folder)) is None:
        return {}
    root, store, log = found
    attempt, _ = log.newest_attempt(log.newest())

    def put(name: str) -> tuple[str, Handed]:
        path = folder / name
        num_bytes, sha256 = hashed.get(name) or (path.stat().st_size, file_sha256(path))
        key = _key(path.relative_to(root).as_posix(), attempt)
        store.put(key, path)
        path.unlink()  # nobody reads it here
        return name, (store.url, key, num_bytes, sha256)

    with ThreadPoolExecutor(PARALLEL // 2) as threads:
        return dict(threads.map(put, list(names)))


def take_over(folder: Path, handed: Mapping[str, Handed]) -> None:
    """In the driver: let what was handed over stand in `folder`, as files that are fetched when they are asked for."""
    for name, (url, key, num_bytes, sha256) in handed.items():
        leave_out(folder / name, url, Stored(key, num_bytes, sha256))


def tell(path: Path, text: str) -> None:
    """Let processes elsewhere hear what was written to `path`. Returns at once; safe in a signal handler."""

    def put() -> None:
        if (found := _run_of(path)) is not None:
            root, store, log = found
            attempt, _ = log.newest_attempt(log.newest())
            store.put(_key(path.relative_to(root).as_posix(), attempt), text.encode())

    if url_of(path) is not None:
        threading.Thread(target=put, daemon=True).start()


def heard(path: Path) -> str:
    """What a driver that works elsewhere has told under `path`; empty for nothing."""
    if url_of(path) is None or (found := _run_of(path)) is None:
        return ""
    root, store, log = found
    attempt, _ = log.newest_attempt(log.newest())
    return (store.get(_key(path.relative_to(root).as_posix(), attempt)) or b"").decode()


def _key(name: str, attempt: int) -> str:
    """Key of what belongs to an attempt and to no entry yet; a later attempt removes it."""
    return f"{name}.{attempt:04d}-{0:06d}"


def _run_of(path: Path) -> tuple[Path, ObjectStore, CommitLog] | None:
    """(working copy, store, log) of the run directory that `path` lies in; None where there is none."""
    for folder in path.parents:
        if (url := url_of(folder)) is None:
            return None
        log = CommitLog(StoreFolder(store_at(url), "log"))
        if "attempt" in (log.read(1) or {}):
            return folder, store_at(url), log
    return None


def _is_held(lock: Path) -> bool:
    with suppress(OSError), lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One process of this machine at a time."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".brought").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
