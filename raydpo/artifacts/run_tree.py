"""What a run directory in an object store holds: its log, read back to the last entry that names everything.

Comes in: the log. Goes out: name -> object. Decision: an entry names what it changed, and now and then one names all, so that a
commit costs what it changed and reading costs a bounded number of requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from typing import Any

from raydpo.artifacts.commit_log import CommitLog, entry_name
from raydpo.artifacts.object_store import PARALLEL
from raydpo.artifacts.placeholder import Stored
from raydpo.artifacts.working_copy import Tree
from raydpo.errors import IntegrityError


def read_tree(log: CommitLog, newest: int) -> Tree:
    """What entry `newest` and those before it reach. Raises IntegrityError where one cannot be read."""
    put, gone = Tree(), set[str]()
    for number, entry in _backwards(log, newest):
        if not entry:
            raise IntegrityError(
                f"{log.place}/{entry_name(number)} cannot be read, and without it nobody knows what the run directory holds. "
                "Restore that object, or set run.dir to another place."
            )
        for name, line in entry.get("tree") or entry.get("put", ()):
            if name not in put and name not in gone:
                put[name] = Stored(*line)
        gone |= set(entry.get("removed", ()))
        if "tree" in entry:
            break
    return put


def lines(tree: Mapping[str, Stored]) -> list[Any]:
    """A tree as an entry has it."""
    return [[name, astuple(stored)] for name, stored in sorted(tree.items())]


def _backwards(log: CommitLog, newest: int) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Numbers and entries from `newest` down, several read at a time."""
    with ThreadPoolExecutor(PARALLEL) as threads:
        for end in range(newest, 0, -PARALLEL):
            numbers = range(end, max(0, end - PARALLEL), -1)
            yield from zip(numbers, threads.map(log.read, numbers), strict=True)
