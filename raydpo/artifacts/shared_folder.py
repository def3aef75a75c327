"""A folder in the shared memory of a node: what lies there is on no disk, and gone with the process that made it.

Comes in: a name and the bytes that it will hold. Goes out: an empty folder. Decision: its maker holds a lock of the kernel on a
file beside it for as long as it lives, so a folder whose lock is free was left behind by a process that was killed, and whoever
comes next removes it. The name is the caller's, so that paths into it are the same in every attempt.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path

from raydpo.artifacts import shared_files
from raydpo.disk import sized
from raydpo.errors import StorageError

PREFIX = "raydpo-folder-"
_LOCK = ".lock"


class SharedFolder:
    """path: of the folder. Made by `create`; close it after use."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path, self._lock = path, lock

    def close(self) -> None:
        """Remove it with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        _lock_of(self.path).unlink(missing_ok=True)
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1


def create(name: str, num_bytes: int) -> SharedFolder:
    """An empty folder `name`, which only this user may open. Raises StorageError where there is no room for `num_bytes`, or
    another process has it."""
    memory = shared_files.SHARED_MEMORY
    path = memory / f"{PREFIX}{name}"
    try:
        sweep()
        if (free := shutil.disk_usage(memory).free) < num_bytes:
            raise StorageError(f"{memory} has {sized(free)} free, and {sized(num_bytes)} are needed")
        lock = _locked(_lock_of(path))
        try:
            path.mkdir(mode=0o700)
        except OSError:
            os.close(lock)
            raise
    except OSError as error:
        raise StorageError(f"{path} cannot be made ({error.strerror})") from error
    return SharedFolder(path, lock)


def sweep() -> int:
    """Remove the folders of this user whose makers are gone; how many there were."""
    return sum(map(_is_abandoned, sorted(shared_files.SHARED_MEMORY.glob(f"{PREFIX}*{_LOCK}"))))


def _locked(path: Path) -> int:
    """Descriptor of the lock file `path`, held. Raises OSError where another process holds it."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise
        if os.fstat(lock).st_nlink:
            return lock
        os.close(lock)  # swept before it was held


def _is_abandoned(lock: Path) -> bool:
    """Whether nobody holds `lock`; then it and its folder are gone."""
    with suppress(OSError), lock.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(lock.with_name(lock.name.removesuffix(_LOCK)), ignore_errors=True)
        lock.unlink(missing_ok=True)
        return True
    return False


def _lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name}{_LOCK}")
