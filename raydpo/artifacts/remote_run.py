"""A run directory in an object store, with a working copy on this machine: what counts is what the log in the store reaches.

Comes in: a working copy, and the moments at which it holds something that shall count. Goes out: objects, then one entry of
the numbered log that names them, put if nobody was there before. Decision: an entry is the commit and the fence in one. The
objects of an attempt have names of their own (`<file>.<attempt>-<commit>`), so no driver ever writes over or removes what
another one's entry reaches; nothing is renamed, and nothing that was just written is looked for in a listing. Plain copies
of what people read (`model/`, `metrics.jsonl`, ...) are made from the objects after the entry, the manifest of a model last.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from raydpo.artifacts.commit_log import CommitLog
from raydpo.artifacts.durable import COMMIT
from raydpo.artifacts.object_store import PARALLEL, StoreFolder, blocks_of
from raydpo.artifacts.placeholder import Stored, store_at
from raydpo.artifacts.plain_copies import renew_plain, update_plain
from raydpo.artifacts.run_tree import lines, read_tree
from raydpo.artifacts.working_copy import Fresh, Tree, WorkingCopy, sign_of
from raydpo.errors import StorageError
from raydpo.schema.json_text import read_object

_WHOLE_EVERY, _WHOLE_SHARE = 32, 8
"""An entry names everything that is reached, not only what changed, where the last one that did is so many entries ago, and
those after it have named at least one in so many of its files."""
_SOON_S = 15.0
"""What is not urgent is committed together, this long after the last commit."""


class RemoteRun:
    """The run directory at `url` while this process owns it. who: what an entry says of the process. lost: makes the error for
    an entry of another driver.

    damaged: after `begin`, a sentence for each small file that is not what was committed.
    """

    def __init__(
        self, folder: Path, url: str, who: Mapping[str, Any], lost: Callable[[dict[str, Any], int], Exception]
    ):
        self.url, self.attempt, self.damaged = url, 0, tuple[str, ...]()
        self.store = store_at(url)
        self._log = CommitLog(StoreFolder(self.store, "log"))
        self._copy = WorkingCopy(folder, url)
        self._who, self._lost = dict(who), lost
        self._id, self._turn = uuid.uuid4().hex, threading.RLock()
        self._last, self._tries, self._whole, self._lines_since = 0, 0, 0, 0
        self._committed_s = time.monotonic()
        self._tree, self._doomed = Tree(), set[str]()

    def newest(self) -> dict[str, Any]:
        """The newest entry of an attempt that can be read, {} for none."""
        return self._log.newest_attempt(self._log.newest())[1]

    def begin(self, *, gives_way: bool = False) -> bool:
        """Put the entry of a new attempt at the end of the log, and make the working copy what the log says.

        gives_way: where an attempt is not known to be over, put nothing and make the copy alone: False.
        """
        while True:
            newest = self._log.newest()
            before, entry = self._log.newest_attempt(newest)
            self._tree = read_tree(self._log, newest)
            if gives_way and entry and entry.get("kind") != "end":
                self._reconcile()
                return False
            self.attempt, self._last, self._whole = before + 1, newest + 1, newest + 1
            if self._log.put(self._last, self._entry("attempt", tree=lines(self._tree))):
                break
        self._require_conditions()
        self._reconcile()
        renew_plain(self.store, self._tree, self._copy.read)
        self._collect()
        return True

    def _reconcile(self) -> None:
        self.damaged = tuple(self._copy.reconcile(self._tree))
        self._copy.keep_state(self._tree)

    def show(self, name: str) -> None:
        """Put a file at the top of the copy where people look for it; no entry of the log names it."""
        self.store.put(name, self._copy.read(name))

    def check(self) -> None:
        """Raise what `lost` makes if another attempt began."""
        with self._turn:
            if (entry := self._log.read(self._last + 1)) is not None:
                raise self._lost(entry, self.attempt)

    def commit(self, what: str) -> None:
        """Make everything in the working copy count, as it is now. Raises what `lost` makes if another attempt began."""
        with self._turn:
            tree, fresh = self._copy.scan()
            number = self._last + 1
            tree |= self._upload(fresh)
            changed = {name: stored for name, stored in tree.items() if self._tree.get(name) != stored}
            removed = sorted(self._tree.keys() - tree.keys())
            self._committed_s = time.monotonic()
            if not changed and not removed:
                return
            named = self._named(number, tree, changed, removed)
            if not self._log.put(number, self._entry("commit", what=what, **named)):
                raise self._lost(self._log.read(number) or {}, self.attempt)
            before, self._tree, self._last = self._tree, tree, number
            self._copy.keep_state(tree)
            update_plain(self.store, before, tree, self._copy.read)
            self._doomed |= {stored.key for stored in before.values()} - {stored.key for stored in tree.values()}
            with suppress(StorageError):  # they are in nobody's way, and the next commit tries again
                self.store.delete(sorted(self._doomed))
                self._doomed.clear()

    def commit_soon(self, what: str) -> None:
        """`commit`, unless the last one was a moment ago."""
        if time.monotonic() - self._committed_s >= _SOON_S:
            self.commit(what)

    def _named(self, number: int, tree: Tree, changed: Tree, removed: list[str]) -> dict[str, Any]:
        """What an entry says of what is reached from it on: all of it, or what is new."""
        self._lines_since += len(changed) + len(removed)
        if number - self._whole < _WHOLE_EVERY or self._lines_since * _WHOLE_SHARE < len(tree):
            return {"put": lines(changed), "removed": removed}
        self._whole, self._lines_since = number, 0
        return {"tree": lines(tree)}

    def end(self) -> None:
        """Say that this attempt is over. Another may have begun."""
        with self._turn:
            self._log.put(self._last + 1, self._entry("end"))

    def _upload(self, fresh: Iterable[Fresh]) -> Tree:
        """Objects of what is fresh, several at a time, under names that no other commit of this attempt uses, whatever
        became of it."""
        self._tries += 1
        by_content = {one.sha256: one for one in self._tree.values() if one.bytes >= _SHARED_BYTES}

        def one(file: Fresh) -> tuple[str, Stored] | None:
            try:
                is_small = file.sign[1] <= _IN_MEMORY_BYTES
                data: bytes | Path = file.path.read_bytes() if is_small else file.path
                size = len(data) if isinstance(data, bytes) else file.sign[1]
                sha256 = _sha256(file.path, data, size)
                stored = by_content.get(sha256)
                if stored is None or stored.bytes != size:
                    stored = Stored(f"{file.name}.{self.attempt:04d}-{self._tries:06d}", size, sha256)
                    self.store.put(stored.key, data, size)
                if sign_of(file.path) == file.sign:
                    self._copy.know(file.sign, stored)
            except FileNotFoundError:  # it went away meanwhile
                return None
            return file.name, stored

        with ThreadPoolExecutor(PARALLEL // 2) as threads:
            return dict(found for found in threads.map(one, fresh) if found is not None)

    def _collect(self) -> None:
        """Remove objects of earlier attempts, which can commit nothing any more, that the log does not reach."""
        kept = {stored.key for stored in self._tree.values()} | self._tree.keys()
        found = ((key, _OBJECT.search(key)) for key, _, _ in self.store.listed())
        self.store.delete([key for key, name in found if name and int(name[1]) < self.attempt and key not in kept])

    def _require_conditions(self) -> None:
        """Raise StorageError where the store puts an object over one that is there though it was asked not to."""
        if self._log.put(self._last, self._entry("attempt", tree=lines(self._tree), asked="again")):
            raise StorageError(
                f"run.dir: {self.url} lies in a store without conditional puts (If-None-Match), so two drivers could not be "
                "kept apart; nothing was started. Use a store that has them (docs/storage.md)."
            )

    def _entry(self, kind: str, **named: Any) -> dict[str, Any]:
        return {
            "attempt": self.attempt,
            "kind": kind,
            "id": self._id,
            **self._who,
            "time": time.strftime("%F %T%z"),
            **named,
        }


_OBJECT = re.compile(r"\.(\d{4,})-\d{6,}$")
"""End of the name of an object: attempt, and which of its commits."""
_SHARED_BYTES = 1 << 16
"""A file from this size on shares the object of another one with the same content."""
_IN_MEMORY_BYTES = 8 << 20
"""A file up to this size is read once. Of a larger one that is growing, what it had at first is hashed and put."""


def _sha256(path: Path, data: bytes | Path, num_bytes: int) -> str:
    """Of the first `num_bytes` of the content; that of a committed folder's file is in its manifest."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    for parent in path.parents:
        if (parent / COMMIT).is_file():
            with suppress(OSError, ValueError, KeyError, TypeError):
                found = read_object(parent / COMMIT)["files"][path.relative_to(parent).as_posix()]
                if found["bytes"] == num_bytes:
                    return str(found["sha256"])
            break
    digest = hashlib.sha256()
    for block in blocks_of(path, num_bytes):
        digest.update(block)
    return digest.hexdigest()
