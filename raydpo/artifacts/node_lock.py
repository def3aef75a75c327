"""One process of this machine at a time, so that what all of them need is fetched once.

Comes in: the path of a copy. Goes out: a block that nobody else of this machine is in for that path. Decision: flock on a file
next to all copies, which the kernel lets go when its holder dies; whoever comes next looks again at what is there. The lock
files are few and stay. Price: two paths may share one and wait for each other. Where there is no flock, each fetches its own.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from raydpo.artifacts.lock import NO_FLOCK
from raydpo.artifacts.mirror_path import copies_root

_NUM_LOCKS = 256


@contextmanager
def once_a_node(path: Path, kind: str = "file") -> Iterator[None]:
    """Wait until no other process or thread of this machine is in a block for `path`. None of a kind inside another of it."""
    number = int.from_bytes(sha256(str(path).encode()).digest()[:8], "big") % _NUM_LOCKS
    lock = copies_root() / ".locks" / f"{kind}-{number:03d}"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
        yield
