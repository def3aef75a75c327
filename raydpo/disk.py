"""A disk without room: one error for it, whoever was writing and whatever that library calls it.

Comes in: a path and, where it is known, how many bytes are meant for it. Goes out: a StorageError that names both and what is
free. Decision: system calls say ENOSPC or EDQUOT, libraries say it in a text, and torch's writer says something else
altogether; so after an error of that last kind the disk is asked, by writing to it. Price: an error of another origin is
called a full disk where the disk is full, too; it stays the cause.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from raydpo.errors import RaydpoError, StorageError

_CODES = (errno.ENOSPC, errno.EDQUOT)
_TEXTS = tuple(os.strerror(code) for code in _CODES)
_PROBE_BYTES = 2**20
_NO_PLACE = (errno.EROFS, errno.ESTALE, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES)
"""What a file system says of a place where nothing can be written."""


@contextmanager
def full_disk(path: Path, num_bytes: int = 0, *, asks_disk: bool = True) -> Iterator[None]:
    """Around what writes `path`: an error of a disk without room becomes a StorageError with what is needed and free.

    num_bytes: expected size; 0: unknown. asks_disk: whether the disk is asked after an error that says nothing of it, which
    is for blocks that do little else than write. Errors of ours and of other faults pass through.
    """
    try:
        yield
    except RaydpoError:
        raise
    except Exception as error:
        chain = list(_chain(error))
        if said := [link for link in chain if isinstance(link, StorageError)]:
            raise said[0] from None  # what followed from it, such as closing the file, says less
        if asks_disk and isinstance(error, OSError) and error.errno in _NO_PLACE:
            raise StorageError(
                f"{path} could not be written: {error.strerror} ({error.filename}). What was committed before is untouched. "
                "Make the place writable again or name another one, then run the same command again."
            ) from error
        folder = existing(path)
        is_asked = asks_disk and not isinstance(error, OSError)
        if not any(map(_says_full, chain)) and not (is_asked and not _has_room(folder)):
            raise
        need = f"{num_bytes:,} bytes" if num_bytes else "more"
        raise StorageError(
            f"{path} could not be written: the disk is full ({need} needed, {free_bytes(folder):,} bytes free). "
            "What was there before is untouched, and what was half written is removed. Free some space, then run the same "
            "command again."
        ) from error


@contextmanager
def removed_on_error(*folders: Path) -> Iterator[None]:
    """Around what fills `folders`: whatever ends it early, they do not stay and take up room."""
    try:
        yield
    except BaseException:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def append_line(path: Path, line: str) -> None:
    """Append `line` and a line feed in UTF-8, all of it or nothing. Raises StorageError when the disk is full."""
    data = memoryview(f"{line}\n".encode())
    with full_disk(path, len(data)), path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(before)
            raise


def free_bytes(path: Path) -> int:
    """What a user may still write to the disk of `path`, which need not be there yet."""
    return shutil.disk_usage(existing(path)).free


def existing(path: Path) -> Path:
    """`path`, or the closest folder above it that is there."""
    return next(parent for parent in [path, *path.absolute().parents] if parent.is_dir())


def sized(num_bytes: int) -> str:
    """A size for people, in powers of ten."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes} bytes"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it came of."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _says_full(error: BaseException) -> bool:
    return (isinstance(error, OSError) and error.errno in _CODES) or any(text in str(error) for text in _TEXTS)


def _has_room(folder: Path) -> bool:
    """Whether something can be written there: the figure of the file system knows no quota."""
    probe = folder / f".room-{uuid.uuid4().hex[:12]}"
    try:
        with probe.open("wb") as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno not in _CODES
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return True
