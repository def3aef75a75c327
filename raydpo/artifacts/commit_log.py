"""A log of numbered entries, `00000001.json` and on: each is put once, if nobody was there before, and never changed.

Comes in: entries, JSON objects. Goes out: whether an entry got its number. Decision: nothing but "put if absent" and "read" is
relied on, which object stores have too: no rename, no lock, no complete listing. A listing only says where to begin to look for
the newest number. The price is a small file an entry.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from raydpo.artifacts.durable import put_if_absent


class LogPlace(Protocol):
    """Where a log lies: a folder, or a part of an object store."""

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Put `data` at `name`, whole, unless something is there; False then."""

    def read(self, name: str) -> bytes | None:
        """The content of `name`; None if there is none."""

    def names(self) -> Iterable[str]:
        """What is there; what was put just now may be missing."""


class DiskFolder:
    """A folder of this machine's file systems, which need not exist."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __str__(self) -> str:
        return str(self._folder)

    def put_if_absent(self, name: str, data: bytes) -> bool:
        return put_if_absent(self._folder / name, data)

    def read(self, name: str) -> bytes | None:
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def names(self) -> Iterable[str]:
        return [path.name for path in self._folder.glob("*.json")]


class CommitLog:
    """The log in `place`."""

    def __init__(self, place: Path | LogPlace) -> None:
        self.place = DiskFolder(place) if isinstance(place, Path) else place

    def put(self, number: int, entry: Mapping[str, Any]) -> bool:
        """Make `entry` durable as `number`; False if that number is taken."""
        return self.place.put_if_absent(entry_name(number), (json.dumps(dict(entry)) + "\n").encode())

    def read(self, number: int) -> dict[str, Any] | None:
        """Entry `number`: None if there is none, {} if it cannot be read (its writer died, where there are no hard links)."""
        data = self.place.read(entry_name(number))
        if data is None:
            return None
        try:
            entry = json.loads(data)
        except ValueError:
            return {}
        return entry if isinstance(entry, dict) else {}

    def newest(self) -> int:
        """The highest number that is taken, 0 for none."""
        names = [name.removesuffix(".json") for name in self.place.names() if name.endswith(".json")]
        number = max((int(name) for name in names if name.isascii() and name.isdecimal()), default=0)
        while self.read(number + 1) is not None:
            number += 1
        return number

    def newest_attempt(self, up_to: int) -> tuple[int, dict[str, Any]]:
        """(number of the attempt that wrote the newest readable entry at or below `up_to`, that entry); (0, {}) for none.

        An entry that cannot be read may have been an attempt, so it counts as one.
        """
        for number in range(up_to, 0, -1):
            entry = self.read(number) or {}
            attempt = entry.get("attempt")
            if isinstance(attempt, int) and not isinstance(attempt, bool):
                return attempt + (up_to - number), entry
        return up_to, {}


def entry_name(number: int) -> str:
    """Of the file of an entry."""
    return f"{number:08d}.json"
