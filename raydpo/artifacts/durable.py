"""The one module of durable writes: a file is there whole, or it is not there.

Protocol: write under a name that no other attempt uses -> fsync the file -> rename -> fsync the folder.
Decision: every step has a named crash point, so that a test can kill the process at each and look at what is left. The
price is an fsync a file.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from raydpo.errors import StorageError

CRASH_POINTS = (
    "file:before-write",
    "file:before-fsync",
    "file:before-rename",
    "file:after-rename",
    "shard:before-record",
    "shard:after-record",
    "folder:before-manifest",
    "folder:before-rename",
    "folder:after-rename",
)
"""Every point at which a test may end the process."""

CRASH_VARIABLE = "RAYDPO_CRASH_AT"
TEMPORARY = ".tmp-"

_NO_PLACE = frozenset({errno.EROFS, errno.ESTALE, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES})
"""What a file system says of a place where nothing can be written."""

_reached: dict[str, int] = {}


def crash_point(name: str) -> None:
    """End the process with code 137 if RAYDPO_CRASH_AT is `name`, or `name:n` and this is the n-th time."""
    assert name in CRASH_POINTS, name
    wanted = os.environ.get(CRASH_VARIABLE)
    if not wanted:
        return
    _reached[name] = _reached.get(name, 0) + 1
    point, _, count = wanted.rpartition(":") if wanted.rpartition(":")[2].isdigit() else (wanted, "", "1")
    assert point in CRASH_POINTS, f"{CRASH_VARIABLE}={wanted} is no crash point"
    if point == name and _reached[name] == int(count):
        os._exit(137)


def write_bytes(path: Path, data: bytes) -> None:
    """Put `data` at `path`, replacing what was there. Raises StorageError when the disk is full."""
    write_with(path, lambda temporary: _write_all(temporary, data), len(data))


def write_text(path: Path, text: str) -> None:
    """`write_bytes` in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON that any parser reads: a number that is not finite becomes null."""
    write_text(path, json.dumps(strict(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def strict(value: Any) -> Any:
    """`value` with None for every float that JSON cannot write (NaN, infinities)."""
    if isinstance(value, dict):
        return {key: strict(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [strict(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_with(path: Path, write: Callable[[Path], None], num_bytes: int = 0) -> None:
    """Let `write` fill a temporary file next to `path`, then make it durable and give it its name.

    num_bytes: expected size, for the message when the disk is full.
    """
    with full_disk(path, num_bytes):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:12]}-{path.name}")
        try:
            crash_point("file:before-write")
            write(temporary)
            crash_point("file:before-fsync")
            fsync(temporary)
            crash_point("file:before-rename")
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        fsync(path.parent)
        crash_point("file:after-rename")


def _write_all(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)


def fsync(path: Path) -> None:
    """Ask the kernel to put a file's bytes, or a folder's entries, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def full_disk(path: Path, num_bytes: int = 0) -> Iterator[None]:
    """Turn "no space left" into a StorageError with what is needed and free, and what says that nothing can be written there
    into one that names it."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_PLACE:
            raise StorageError(
                f"{path} could not be written: {error.strerror} ({error.filename}). What was committed before is untouched. "
                "Make the place writable again or name another one, then run the same command again."
            ) from error
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        folder = next(parent for parent in [path, *path.parents] if parent.is_dir())
        need = f"{num_bytes:,} bytes" if num_bytes else "more"
        raise StorageError(
            f"{path} could not be written: the disk is full ({need} needed, {shutil.disk_usage(folder).free:,} bytes free). "
            "What was there before is untouched and the half-written file was removed. Free some space, then run the same "
            "command again."
        ) from error
