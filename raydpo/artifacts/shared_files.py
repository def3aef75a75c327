"""Files that processes of one node share for a moment: made by one, written by several, mapped by others, then gone.

Comes in: a size. Goes out: a file in shared memory, or in the folder for temporary files where that lacks room. Decision: its
maker holds a lock of the kernel on a file beside it for as long as it lives, so a file whose lock is free was left behind by a
process that was killed, and whoever comes next removes it. What is mapped stays readable after that.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
import tempfile
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from raydpo.disk import sized
from raydpo.errors import StorageError

SHARED_MEMORY = Path("/dev/shm")
PREFIX = "raydpo-weights-"
HEADER_BYTES = 64
"""Before the first tensor: the key, and zeros."""
_LOCK = ".lock"
_SPARE_BYTES = 16 * 2**20
"""What is left to others in shared memory."""


@dataclass
class SharedFile:
    """An open file.

    path, key: how others find it, and know that it is this one.
    descriptor: of its bytes; -1: closed.
    lock: held by its maker; -1: by another process.
    """

    path: Path
    key: str
    descriptor: int
    lock: int = -1

    def write(self, offset_bytes: int, data: memoryview) -> None:
        """All of `data`. Raises OSError where the room ran out, never SIGBUS as a write to mapped memory would."""
        while data:
            num_bytes = os.pwrite(self.descriptor, data, offset_bytes)
            offset_bytes, data = offset_bytes + num_bytes, data[num_bytes:]

    def mapped(self) -> mmap.mmap:
        """Its bytes as memory of this process; what is written there is seen by nobody else."""
        return mmap.mmap(self.descriptor, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)

    def close(self) -> None:
        """Write no more. What is mapped stays mapped, and the lock is held."""
        self.descriptor = _closed(self.descriptor)

    def release(self) -> None:
        """Close, and let the lock go."""
        self.close()
        self.lock = _closed(self.lock)


def folders() -> tuple[Path, ...]:
    """Where such files go, first choice first."""
    return (SHARED_MEMORY, Path(tempfile.gettempdir()))


def create(num_bytes: int) -> SharedFile:
    """A file of `num_bytes`, header included, which only this user may open. Raises StorageError with what each place lacks."""
    refusals = []
    for folder in folders():
        try:
            free = shutil.disk_usage(folder).free
            if free < num_bytes + _SPARE_BYTES:
                refusals.append(f"{folder} has {sized(free)} free")
                continue
            return _created(folder, num_bytes)
        except OSError as error:
            refusals.append(f"{folder}: {error.strerror}")
    raise StorageError(
        f"weights of {sized(num_bytes)} could not be shared with other processes of this node: {'; '.join(refusals)}. Give the "
        "container more shared memory (docker run --shm-size, an emptyDir of medium Memory at /dev/shm), or name a folder with "
        "room in TMPDIR."
    )


def opened(path: Path, key: str, *, is_writer: bool = False) -> SharedFile | None:
    """The file that `create` made; None where there is none, or another one: this is another node, or it was removed."""
    try:
        descriptor = os.open(path, (os.O_RDWR if is_writer else os.O_RDONLY) | os.O_NOFOLLOW)
    except OSError:
        return None
    if os.pread(descriptor, len(key), 0) != key.encode():
        os.close(descriptor)
        return None
    return SharedFile(path, key, descriptor)


def remove(path: Path, key: str) -> bool:
    """Remove the file, whose room is free as soon as nobody has it mapped; whether it was there."""
    if (file := opened(path, key)) is None:
        return False
    file.close()
    path.unlink(missing_ok=True)
    _lock_of(path).unlink(missing_ok=True)
    return True


def sweep() -> int:
    """Remove the files of this user whose makers are gone; how many there were."""
    return sum(_is_abandoned(lock) for folder in folders() for lock in _locks(folder))


def _created(folder: Path, num_bytes: int) -> SharedFile:
    key = uuid.uuid4().hex
    file = SharedFile(folder / f"{PREFIX}{key}", key, -1)
    try:
        file.lock = _new(_lock_of(file.path))
        fcntl.flock(file.lock, fcntl.LOCK_SH)
        if not os.fstat(file.lock).st_nlink:  # swept before it was held
            file.release()
            return _created(folder, num_bytes)
        file.descriptor = _new(file.path)
        os.ftruncate(file.descriptor, num_bytes)
        file.write(0, memoryview(key.encode()))
    except OSError:
        file.release()
        file.path.unlink(missing_ok=True)
        _lock_of(file.path).unlink(missing_ok=True)
        raise
    return file


def _new(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)


def _lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name}{_LOCK}")


def _locks(folder: Path) -> list[Path]:
    with suppress(OSError), os.scandir(folder) as entries:
        return [Path(each.path) for each in entries if each.name.startswith(PREFIX) and each.name.endswith(_LOCK)]
    return []


def _is_abandoned(lock: Path) -> bool:
    """Whether nobody holds `lock`; then it and its file are gone."""
    with suppress(OSError), lock.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.with_name(lock.name.removesuffix(_LOCK)).unlink(missing_ok=True)
        lock.unlink(missing_ok=True)
        return True
    return False


def _closed(descriptor: int) -> int:
    if descriptor >= 0:
        os.close(descriptor)
    return -1
