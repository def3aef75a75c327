"""One driver a run directory: a lock that the kernel releases when its holder dies, however it dies.

Decision: flock on a file of the run directory, instead of a heartbeat: no clock, no timeout, no stale lock after a
SIGKILL. The price: where a file system has no flock, or one that other nodes do not see, only the log of commits
(`lease.py`) keeps two drivers apart.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import stat
import time
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from raydpo.errors import RunInUseError, StorageError

NO_FLOCK = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
"""What flock says on a file system that does not have it."""
_ATTEMPTS = 100


class RunLock:
    """Context manager. Raises RunInUseError, naming the holder, when another driver has the directory, and StorageError when
    there can be no lock file.

    is_supported: whether the file system has flock; without it nothing is locked.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lock"
        self.is_supported = True
        self._descriptor = -1
        self._written = b""

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Take it. A file that is removed or replaced meanwhile is let go for the one that has its name now."""
        with refused(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for _ in range(_ATTEMPTS):
                self._descriptor = _opened(self.path)
                try:
                    if not self._flock() or self.is_intact:
                        _held.add(self)
                        return
                except BaseException:
                    self._close()
                    raise
                self._close()
        raise StorageError(
            f"{self.path} was removed or replaced {_ATTEMPTS} times while it was being locked, so nothing was started. Find "
            "out what removes it, or set run.dir to another folder."
        )

    def release(self) -> None:
        """Let it go."""
        _held.discard(self)
        self._close()

    @property
    def is_intact(self) -> bool:
        """Whether the file that is locked is the one that others find under its name: the same to the kernel or, where a file
        system numbers its files anew, by what this lock wrote into it."""
        if self._descriptor < 0 or not self.is_supported:
            return False
        try:
            if os.path.samestat(os.fstat(self._descriptor), self.path.lstat()):
                return True
            return bool(self._written) and not self.path.is_symlink() and self.path.read_bytes() == self._written
        except OSError:
            return False

    def _flock(self) -> bool:
        """Lock the open file and write down who did; False where there is no flock."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise in_use(self.path.parent, _owner(os.pread(self._descriptor, 4096, 0))) from error
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
            self.is_supported = False
            return False
        if os.fstat(self._descriptor).st_nlink <= 1:  # a file with a second name may be somebody's
            owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%F %T%z")}
            self._written = json.dumps({**owner, "id": uuid.uuid4().hex}).encode()
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, self._written, 0)
        return True

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def in_use(folder: Path | str, owner: str) -> RunInUseError:
    """The error of a driver that finds another one in `folder`."""
    return RunInUseError(
        f"run.dir: {folder} is in use by {owner}. Two drivers in one run directory would overwrite each other's checkpoints, "
        "so nothing was started. Wait for it, end it, or set run.dir to another folder."
    )


@contextmanager
def refused(path: Path) -> Iterator[None]:
    """Turn what a file system says against a lock or a log at `path` into a StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} cannot be used ({error.strerror or type(error).__name__}), and without it two drivers could work in one "
            "run directory; nothing was committed. run.dir has to be a folder on a file system that this user may write to."
        ) from error


def _opened(path: Path) -> int:
    """A descriptor of the plain file `path`, which is made if it is not there. Follows no link, changes no content."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
    raise StorageError(
        f"{path} is a link or a special file. The lock of a run directory is a plain file in it; what the link leads to was "
        f"left as it is, and nothing was started. Remove {path}, or set run.dir to another folder."
    )


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
