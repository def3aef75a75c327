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
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from raydpo.disk import full_disk

CRASH_POINTS = (
    "file:before-write",
    "file:before-fsync",
    "file:before-rename",
    "file:after-rename",
    "shard:before-record",
    "shard:after-record",
    "merge:before-commit",
    "merge:after-commit",
    "removal:before-file",
    "folder:before-manifest",
    "folder:before-rename",
    "folder:after-rename",
    "put:before-link",
    "put:after-link",
    "object:before-put",
    "object:after-put",
    "object:before-create",
    "object:after-create",
    "object:before-copy",
    "object:before-delete",
    "object:before-list",
)
"""Every point at which a test may end the process; those of objects are reached with an object store alone."""

CRASH_VARIABLE = "RAYDPO_CRASH_AT"
TEMPORARY = ".tmp-"
COMMIT = "COMMIT.json"
"""The manifest of a committed folder."""
_NO_LINK = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
"""What link says on a file system without hard links."""

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
        temporary = _temporary(path)
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


@contextmanager
def whole_copy(path: Path, num_bytes: int = 0) -> Iterator[Path]:
    """A temporary file for the block to fill, which is called `path` at its end; an error removes it. It is not made durable:
    for copies of what can be fetched again.

    num_bytes: expected size, for the message when the disk is full.
    """
    temporary = _temporary(path)
    try:
        with full_disk(path, num_bytes):
            yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """A name next to `path` that no other attempt uses."""
    return path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:12]}-{path.name}")


def _write_all(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)


def put_if_absent(path: Path, data: bytes) -> bool:
    """Put `data` at `path`, whole and durable, unless something is there; False then. Of any number of processes that try,
    one succeeds."""
    temporary = _temporary(path)
    with full_disk(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_all(temporary, data)
            fsync(temporary)
            crash_point("put:before-link")
            try:
                os.link(temporary, path)
            except FileExistsError:
                # A server may have done it and its answer was lost: then it is one file with two names.
                if not os.path.samestat(temporary.stat(), path.lstat()):
                    return False
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
                if not _write_new(path, data):
                    return False
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        fsync(path.parent)
        crash_point("put:after-link")
    return True


def _write_new(path: Path, data: bytes) -> bool:
    """Where there are no hard links: the name decides, before there is anything behind it."""
    try:
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    return True


def fsync(path: Path) -> None:
    """Ask the kernel to put a file's bytes, or a folder's entries, on the disk. A file system that knows no such thing for
    folders has them there, or nobody can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)
