"""What the file system of a folder can do that a run relies on: locks, links, renames, folders that are made durable.

Comes in: a folder, which need not exist. Goes out: findings, each from doing the thing in a folder of its own.
Decision: tried where the run will be, not read off the name of the file system.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from raydpo.doctor.finding import Finding, Level

NETWORK = ("nfs", "cifs", "smb", "fuse", "lustre", "gpfs", "ceph", "beegfs", "9p", "glusterfs", "afs", "virtiofs")
"""Beginnings of the names of file systems that other machines may share."""
_ENOUGH_BYTES = 5 * 2**30
_LEAST_BYTES = 100 * 2**20
_CLOCK_OFFSET_S = 2.0


def check(key: str, folder: Path) -> Iterator[Finding]:
    """Findings on the folder that the config names under `key`, or the one above it that is there."""
    folder = folder.expanduser().absolute()
    place = next((each for each in (folder, *folder.parents) if each.exists()), Path("/"))
    if not place.is_dir():
        yield Finding(key, "fail", f"{folder}: {place} is a file, and a folder is needed")
        return
    kind = kind_of_mount(place, Path("/proc/mounts"))
    yield room(key, shutil.disk_usage(place).free, f"{folder} on {kind}")
    try:
        work = Path(tempfile.mkdtemp(prefix=".raydpo-doctor-", dir=place))
    except OSError as error:
        yield Finding(key, "fail", f"{place} cannot be written to ({error.strerror})")
        return
    try:
        yield from abilities(key, work, kind)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def abilities(key: str, work: Path, kind: str) -> Iterator[Finding]:
    """What can be done in the empty folder `work`."""
    tries: list[tuple[str, Callable[[Path], str | None]]] = [
        ("rename", _renames),
        ("flock", _locks),
        ("link", _links),
        ("folder fsync", _syncs),
        ("file times", _times),
    ]
    for name, attempt in tries:
        try:
            problem = attempt(work)
        except OSError as error:
            problem = error.strerror or type(error).__name__
        yield _judged(f"{key} {name}", name, problem, kind)


def room(key: str, free_bytes: int, where: str) -> Finding:
    """Whether what is free holds checkpoints."""
    text = f"{where}, {free_bytes / 2**30:,.1f} GiB free"
    if free_bytes < _LEAST_BYTES:
        return Finding(key, "fail", f"{text}: no checkpoint will fit")
    if free_bytes < _ENOUGH_BYTES:
        return Finding(key, "warn", f"{text}: little room for checkpoints")
    return Finding(key, "ok", text)


def kind_of_mount(folder: Path, mounts: Path) -> str:
    """Name of the file system that `folder` is on."""
    best, kind = Path("/"), "an unknown file system"
    with suppress(OSError):
        resolved = folder.resolve()
        for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines():
            _, point, name, *_ = line.split(" ")
            mounted = Path(point.encode().decode("unicode_escape"))  # a space is written \\040
            if resolved.is_relative_to(mounted) and len(mounted.parts) >= len(best.parts):
                best, kind = mounted, name
    return kind


def is_network(kind: str) -> bool:
    """Whether other machines may use the same files."""
    return kind.startswith(NETWORK) and kind != "fuse.fuse-overlayfs"


_WITHOUT: dict[str, tuple[Level, str]] = {
    "rename": ("fail", "and a run cannot commit anything here"),
    "flock": ("warn", "so only the log of commits keeps two drivers of one run apart: the one that began last goes on"),
    "link": ("warn", "so a commit is put with O_EXCL, which a very old NFS does not keep to"),
    "folder fsync": ("warn", "so a power cut may undo the last commit"),
    "file times": ("warn", "so `cache gc`, which goes by the age of leftovers, may keep or remove too much"),
}
_FINE = {
    "rename": "replaces a file at once",
    "flock": "keeps a second holder out",
    "link": "put-if-absent works",
    "folder fsync": "works",
    "file times": "those of this machine",
}


def _judged(title: str, name: str, problem: str | None, kind: str) -> Finding:
    if problem is not None:
        level, price = _WITHOUT[name]
        return Finding(title, level, f"{problem}, {price}")
    if name == "flock" and is_network(kind):
        return Finding(title, "ok", f"{_FINE[name]} on this machine; whether on others is the mount's choice ({kind})")
    return Finding(title, "ok", _FINE[name])


def _renames(work: Path) -> str | None:
    old, new = work / "old", work / "new"
    old.write_text("old")
    new.write_text("new")
    os.replace(new, old)
    return None if old.read_text() == "new" and not new.exists() else "a rename does not replace"


def _locks(work: Path) -> str | None:
    path = work / "lock"
    path.touch()
    with path.open() as first, path.open() as second:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
    return "two holders get the same lock"


def _links(work: Path) -> str | None:
    source, target = work / "source", work / "target"
    source.touch()
    os.link(source, target)
    try:
        os.link(source, target)
    except FileExistsError:
        return None
    return "a link replaces what is there"


def _syncs(work: Path) -> str | None:
    descriptor = os.open(work, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
        return "there is none"
    finally:
        os.close(descriptor)
    return None


def _times(work: Path) -> str | None:
    path = work / "time"
    before = time.time()
    path.touch()
    ahead = path.stat().st_mtime - time.time()
    behind = before - path.stat().st_mtime
    offset = ahead if ahead > behind else -behind
    return (
        f"{abs(offset):.0f} s {'ahead' if offset > 0 else 'behind'}" if max(ahead, behind) > _CLOCK_OFFSET_S else None
    )
