"""A claim on a piece of work that several runs would do alike: one does it, the others leave it and look again later.

Comes in: a folder that they share, and the name of the work. Goes out: whether it is ours. Decision: a lock of the kernel on
a file, which ends with the process that holds it, so that nobody has to judge whether a claimant lives. Price: on a file
system without such locks everybody's claim holds, and work is done twice.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TAKEN = (BlockingIOError, PermissionError)


@contextmanager
def claimed(folder: Path, name: str) -> Iterator[bool]:
    """Inside, whether work `name` is ours; False where another process, or this one, has it.

    Who gets it looks first whether the work was done meanwhile.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except PermissionError:  # a file of another user, whose claim cannot be asked for
        yield True
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except _TAKEN:
            yield False
            return
        except OSError:  # no locks here
            yield True
            return
        yield True
        with suppress(
            FileNotFoundError
        ):  # after an error it stays: whoever locks a removed file must find the work done
            path.unlink()
    finally:
        os.close(descriptor)


def unclaim(folder: Path, name: str) -> bool:
    """Remove what a dead process left of its claim on work `name`; False for a living one's, which stays."""
    try:
        descriptor = os.open(folder / name, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return False
    try:
        with suppress(OSError):  # no locks here
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except _TAKEN:
                return False
        (folder / name).unlink(missing_ok=True)
    finally:
        os.close(descriptor)
    return True


def is_claimed(folder: Path, name: str) -> bool:
    """Whether a living process has work `name`."""
    try:
        descriptor = os.open(folder / name, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except _TAKEN:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
