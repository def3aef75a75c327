"""Writers of a cache next to each other, a collector alone: so that nothing is removed that is just about to count.

Comes in: the folder of a cache. Goes out: a moment in which nobody removes, or nobody writes. Decision: a lock of the kernel on
`<cache>/.lock`, shared by writers, which ends with its process; a collector holds it for few files at a time. Price: where
there are no locks, or somebody keeps one for a minute, writers go on without, and a collector leaves everything as it is.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"
_PATIENCE_S, _POLL_S = 60.0, 0.01


@contextmanager
def writing(cache: Path) -> Iterator[None]:
    """Inside, no collector removes anything of the cache."""
    cache.mkdir(parents=True, exist_ok=True)
    descriptor = _opened(cache)
    try:
        if descriptor >= 0:
            _locked(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


@contextmanager
def removing(cache: Path) -> Iterator[bool]:
    """Inside, nobody writes to the cache; False where somebody does all the time. True where there are no locks: then the age
    of what is removed has to do."""
    descriptor = _opened(cache)
    try:
        yield descriptor < 0 or _locked(descriptor, fcntl.LOCK_EX)
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _opened(cache: Path) -> int:
    try:
        return os.open(cache / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError:  # a cache of another user, or one that can only be read
        return -1


def _locked(descriptor: int, kind: int) -> bool:
    """Whether the lock was had in time, or there are none."""
    end_s = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        except (BlockingIOError, PermissionError):
            if time.monotonic() > end_s:
                return False
            time.sleep(_POLL_S)
        except OSError:
            return True
