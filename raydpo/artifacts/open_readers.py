"""Who has a cache open: a file a reader, locked by the kernel for as long as its process lives and wants it.

Comes in: the folder of a cache, and what its reader found there. Goes out: to a collector, what each living reader may still
read. Decision: a reader is entered before it looks, and writes down which replaced shards it will not look for; what it has
not ruled out is kept for it. No clock decides, except where the file system has no locks. Price: a small file a reader; one
that may not write into the cache is not known.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import uuid
import weakref
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

READERS = ".readers"
_ATTEMPTS = 20
_FORGOTTEN_S = 30 * 86400.0
"""Where there are no locks, a reader whose file is older than this is taken for dead."""


@dataclass(frozen=True)
class Reach:
    """What a living reader has said. It may read everything else.

    merged: merged shards that it reads in the place of those that they replace.
    index: the index that it maps, "" for none; None: not known yet.
    """

    merged: frozenset[str] = frozenset()
    index: str | None = None


class OpenReader:
    """This process reads the cache in `folder`, until `close`, its own end, or that of the object."""

    def __init__(self, folder: Path) -> None:
        self._close = weakref.finalize(self, _let_go, *_entered(folder / READERS)) if folder.is_dir() else None
        if self._close is not None:
            _OPEN.add(self)

    def found(self, merged: Iterable[str], index: str | None) -> None:
        """Say what was found: the merged shards, and the name of the index that is mapped."""
        entry = self._close.peek() if self._close is not None else None
        if entry is not None and entry[2][1] >= 0:
            data = json.dumps({"merged": sorted(merged), "index": index or ""}).encode()
            with suppress(OSError):  # then everything is kept for it
                os.ftruncate(entry[2][1], 0)
                os.pwrite(entry[2][1], data, 0)

    def close(self) -> None:
        """Nothing has to be kept for this reader any more."""
        if self._close is not None:
            self._close()

    def forget(self) -> None:
        """In a forked child: the reader is its parent's."""
        entry = self._close.detach() if self._close is not None else None
        if entry is not None and entry[2][1] >= 0:
            with suppress(OSError):
                os.close(entry[2][1])


_OPEN: weakref.WeakSet[OpenReader] = weakref.WeakSet()


def _forget_all() -> None:
    for reader in list(_OPEN):
        reader.forget()


os.register_at_fork(after_in_child=_forget_all)


def _entered(folder: Path) -> tuple[Path, int]:
    """(file, descriptor) of a new reader; -1 for who may not write."""
    path = folder
    with suppress(OSError):
        folder.mkdir(exist_ok=True)
        for _ in range(_ATTEMPTS):
            path = folder / uuid.uuid4().hex
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(descriptor), path.lstat()):  # else a collector took it for a dead one's
                    return path, descriptor
            except (BlockingIOError, FileNotFoundError):
                pass
            except OSError:  # no locks here
                return path, descriptor
            os.close(descriptor)
    return path, -1


def _let_go(path: Path, descriptor: int) -> None:
    if descriptor >= 0:
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def open_readers(cache: Path, *, clear: bool = False) -> list[Reach]:
    """What each living reader of the cache reaches. clear: remove the files of the dead."""
    found = []
    for path in sorted((cache / READERS).glob("*")):
        with suppress(FileNotFoundError):
            if _is_living(path, clear):
                found.append(_reach(path))
    return found


def _is_living(path: Path, clear: bool) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_living = False
    except (BlockingIOError, PermissionError):
        is_living = True
    except OSError:
        is_living = time.time() - path.stat().st_mtime < _FORGOTTEN_S
    try:
        if clear and not is_living:
            path.unlink()
    finally:
        os.close(descriptor)
    return is_living


def _reach(path: Path) -> Reach:
    try:
        said = json.loads(path.read_bytes())
        return Reach(frozenset(map(str, said["merged"])), str(said["index"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Reach()
