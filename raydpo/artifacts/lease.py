"""Who owns a run directory: the lock, and the number of the attempt in the log of commits, `RUN/log/`.

Comes in: a run directory, and the path of whatever is about to count there. Goes out: leave to make it count, or
LostLeaseError. Decision: no decision by a clock. An attempt begins by putting an entry of its own at the end of the log, and
from then on nobody but its process adds one; so an entry that it finds where its own belongs is another driver's, whatever
became of the lock. What it was given leave for and had not made count before that, the other driver sweeps away with the
staging folder. The price is a file an attempt and a file a commit.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from raydpo.artifacts.commit_log import CommitLog
from raydpo.artifacts.copies_room import make_room
from raydpo.artifacts.lock import RunLock, in_use, refused
from raydpo.artifacts.mirror_path import url_of
from raydpo.artifacts.remote_run import RemoteRun
from raydpo.errors import LostLeaseError, RunInUseError, StorageError

_BEGUN: list[Lease] = []


class Lease:
    """Context manager: this process owns `folder`. Raises RunInUseError, LostLeaseError (of a folder around it) and
    StorageError.

    gives_way: for who only reads: of a run directory in an object store with which another driver may not be done, own the
        working copy alone.
    attempt: its number, from 1; 0 before it began.
    remote: the run directory in the object store whose working copy `folder` is; None for one of this machine.
    looked_at: the same where this one gave way.
    notes: what the user should know of this file system, in sentences.
    """

    def __init__(self, folder: Path, *, gives_way: bool = False) -> None:
        self._gives_way = gives_way
        self.folder = Path(os.path.abspath(folder))
        self.attempt = 0
        self.notes: tuple[str, ...] = ()
        self._lock = RunLock(self.folder)
        self._log_folder = self.folder / "log"
        self._log = CommitLog(self._log_folder)
        self._first = self._last = 0  # numbers of the entries of this attempt
        self._id = uuid.uuid4().hex
        self._turn = threading.Lock()
        self.remote: RemoteRun | None = None
        self.looked_at: RemoteRun | None = None

    def __enter__(self) -> Lease:
        around = _covering(self.folder)
        for other in around:
            if other.folder == self.folder:
                raise in_use(self.folder, f"this process ({os.getpid()}), which began attempt {other.attempt} of it")
            other.check()
        self._lock.acquire()
        try:
            with refused(self._log_folder):
                self._begin()
            if not around and (url := url_of(self.folder)) is not None:
                self._begin_remote(url)
        except BaseException:
            self._lock.release()
            raise
        _BEGUN.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if self.remote is not None:
                self._end_remote(self.remote, is_whole=kind is None)
        finally:
            if self in _BEGUN:
                _BEGUN.remove(self)
            if not self._lock.is_supported:
                self._end()
            self._lock.release()

    def commit(self, what: str) -> None:
        """Note that `what` is about to count. Raises LostLeaseError if another attempt began, StorageError where nothing can
        be written."""
        with self._turn, refused(self._log_folder):
            self._require_lock()
            if not self._log.put(self._last + 1, self._entry("commit", what)):
                raise self._lost(self._last + 1)
            self._last += 1

    def check(self) -> None:
        """Raise LostLeaseError if another attempt began."""
        with self._turn, refused(self._log_folder):
            self._require_lock()
            if self._log.read(self._last + 1) is not None:
                raise self._lost(self._last + 1)
        if self.remote is not None:
            self.remote.check()

    def _begin_remote(self, url: str) -> None:
        """Take the run directory at `url`, of which `folder` is the working copy, and make the copy what counts there."""
        if not self._lock.is_supported:
            raise StorageError(
                f"{self.folder}, the working copy of {url}, is on a file system without locks (flock), which tell who works "
                "there; nothing was started. Set RAYDPO_STORE_DIR to a folder on a local disk."
            )
        remote = RemoteRun(self.folder, url, _who(), partial(_lost_remote, url))
        newest = remote.newest()
        if newest.get("kind") != "end" and _runs_here(newest):
            raise in_use(url, _driver(newest))
        make_room(self.folder)
        if remote.begin(gives_way=self._gives_way):
            self.attempt, self.remote = remote.attempt, remote
            said = (
                "a driver that is started on another machine while this one runs takes the run over, and this one ends at its "
                "next commit"
            )
        else:
            self.looked_at = remote
            said = f"{_driver(newest)} has not said that it is done there, so what was committed is read and nothing changed"
        damaged = (f"{text}; it is left out" for text in remote.damaged)
        self.notes = (f"{url} is an object store: {said}. The working copy is {self.folder}.", *damaged)

    def _end_remote(self, remote: RemoteRun, *, is_whole: bool) -> None:
        if is_whole:
            remote.commit("what was left")
        with suppress(StorageError):  # then the next driver asks the kernel for this process
            remote.end()

    def _begin(self) -> None:
        """Put an entry of a new attempt at the end of the log."""
        if self._log_folder.is_symlink():
            raise StorageError(
                f"{self._log_folder} is a link. The log of commits of a run directory is a folder in it; nothing was started. "
                "Remove the link, or set run.dir to another folder."
            )
        while True:
            newest = self._log.newest()
            before, entry = self._log.newest_attempt(newest)
            if not self._lock.is_supported:
                self._without_flock(entry)
            self.attempt, self._first, self._last = before + 1, newest + 1, newest + 1
            if self._log.put(self._first, self._entry("attempt")):
                return

    def _without_flock(self, newest: dict[str, Any]) -> None:
        """Refuse if the driver of the newest attempt is known to run; say what is not known."""
        if newest.get("kind") != "end" and _runs_here(newest):
            raise in_use(self.folder, _driver(newest))
        self.notes = (
            f"the file system of {self.folder} has no locks (flock): a driver that is started on another machine while this "
            "one runs takes the run over, and this one ends at its next commit.",
        )

    def _require_lock(self) -> None:
        """The lock, which somebody may have removed, is taken again. Without it the log has to be the one that was begun."""
        if self._lock.is_intact:
            return
        if self._lock.is_supported:
            self._lock.release()
            try:
                self._lock.acquire()
            except RunInUseError as error:
                raise LostLeaseError(f"{_LOST.format(self.folder)} {error}") from error
        if (self._log.read(self._first) or {}).get("id") != self._id:
            raise LostLeaseError(
                f"{_LOST.format(self.folder)} Its log of commits, {self._log_folder}, was removed, so nobody can tell whether "
                "another driver works there. Look for one; the same command goes on from what was committed."
            )

    def _lost(self, number: int) -> LostLeaseError:
        entry = self._log.read(number) or {}
        return LostLeaseError(
            f"{_LOST.format(self.folder)} {_driver(entry)} took it over with attempt {entry.get('attempt', 'unknown')}; this "
            f"was attempt {self.attempt}. Let that one go on, or end it and run the same command again."
        )

    def _end(self) -> None:
        """Without flock: let the next driver know that this one is gone. It may have lost the lease."""
        try:
            self._log.put(self._last + 1, self._entry("end"))
        except (OSError, StorageError):
            return  # then the next one asks the kernel for this process

    def _entry(self, kind: str, what: str = "") -> dict[str, Any]:
        named = {"what": what} if what else {}
        return {
            "attempt": self.attempt,
            "kind": kind,
            **named,
            "id": self._id,
            **_who(),
            "time": time.strftime("%F %T%z"),
        }


_LOST = "{} is no longer this driver's, so nothing more was committed; what was committed before is untouched."


def fence(path: Path) -> None:
    """To be called before `path` begins to count, with everything in place for it. Raises LostLeaseError if a run directory
    of this process that `path` lies in was taken over. Paths that lie in none are free."""
    path = Path(os.path.abspath(path))
    leases = _covering(path)
    for lease in leases[:-1]:
        lease.check()
    for lease in leases[-1:]:
        lease.commit(path.relative_to(lease.folder).as_posix())


def settle(path: Path, *, is_urgent: bool = True) -> None:
    """To be called once `path` counts on this machine: in a working copy of an object store, make it count there. Raises
    LostLeaseError if another driver took the run directory over. Who gave way to another one only shows its files.

    is_urgent: False for one of many, which may wait for others.
    """
    path = Path(os.path.abspath(path))
    for lease in _covering(path)[:1]:
        name = path.relative_to(lease.folder).as_posix()
        if lease.remote is not None:
            (lease.remote.commit if is_urgent else lease.remote.commit_soon)(name)
        elif lease.looked_at is not None and path.parent == lease.folder and path.is_file():
            lease.looked_at.show(name)


def require_lease(path: Path) -> None:
    """Raise LostLeaseError where `fence` would: before what lies at `path` is changed."""
    for lease in _covering(Path(os.path.abspath(path))):
        lease.check()


def _lost_remote(url: str, entry: dict[str, Any], attempt: int) -> LostLeaseError:
    return LostLeaseError(
        f"{_LOST.format(url)} {_driver(entry)} took it over with attempt {entry.get('attempt', 'unknown')}; this was attempt "
        f"{attempt}. Let that one go on, or end it and run the same command again."
    )


def _covering(path: Path) -> list[Lease]:
    """The leases of this process on `path` and on what it lies in, the outermost first."""
    return sorted(
        (lease for lease in _BEGUN if path.is_relative_to(lease.folder)), key=lambda lease: len(lease.folder.parts)
    )


def _who() -> dict[str, Any]:
    """This process, so that no other one, and no later one with its number, is taken for it."""
    return {"host": socket.gethostname(), "boot": _boot(), "pid": os.getpid(), "started": _started(os.getpid())}


def _runs_here(entry: dict[str, Any]) -> bool:
    """Whether the process that wrote `entry` is known to run. One of another machine is not known."""
    who = _who()
    pid = entry.get("pid")
    if not isinstance(pid, int) or (entry.get("host"), entry.get("boot")) != (who["host"], who["boot"]):
        return False
    return pid != os.getpid() and entry.get("started") is not None and _started(pid) == entry["started"]


def _boot() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _started(pid: int) -> int | None:
    """Clock ticks from the start of the machine to that of the process; None if there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _driver(entry: dict[str, Any]) -> str:
    if "pid" not in entry:
        return "another driver"
    return f"process {entry['pid']} on {entry.get('host')} (since {entry.get('time')})"


os.register_at_fork(after_in_child=_BEGUN.clear)
