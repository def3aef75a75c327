"""One driver a run directory: a lock that the kernel releases when its holder dies, however it dies.

Decision: flock on a file of the run directory, instead of a heartbeat: no clock, no timeout, no stale lock after a
SIGKILL. The price: a shared file system must support locks (NFSv4, Lustre with flock, GPFS and local disks do).
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import weakref
from contextlib import suppress
from pathlib import Path

from raydpo.errors import RunInUseError


class RunLock:
    """Context manager. Raises RunInUseError, naming the holder, when another driver has the directory."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lock"
        self._descriptor = -1

    def __enter__(self) -> RunLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = _owner(os.pread(self._descriptor, 4096, 0))
            self._close()
            raise RunInUseError(
                f"run.dir: {self.path.parent} is in use by {owner}. Two drivers in one run directory would overwrite each "
                "other's checkpoints, so nothing was started. Wait for it, end it, or set run.dir to another folder."
            ) from error
        _held.add(self)
        owner_text = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%F %T%z")})
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, owner_text.encode(), 0)
        return self

    def __exit__(self, *_: object) -> None:
        _held.discard(self)
        self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


_held: weakref.WeakSet[RunLock] = weakref.WeakSet()


def _forget_all() -> None:
    """In a forked child: drop inherited descriptors, so that a lock ends with the process that took it."""
    for lock in list(_held):
        with suppress(OSError):
            lock._close()


os.register_at_fork(after_in_child=_forget_all)


def _owner(text: bytes) -> str:
    try:
        owner = json.loads(text)
        return f"process {owner['pid']} on {owner['host']} (since {owner['since']})"
    except (ValueError, KeyError, TypeError):
        return "another process"
