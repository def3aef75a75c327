"""The files of a working copy, and which objects of the store hold them.

Comes in: a folder of this machine. Goes out: name -> object of everything that belongs to the run directory, and the files
whose content no object holds yet. Decision: a file is known by inode, size and time of change, so that one which was moved
keeps its object and nothing is read twice; after a restart of the machine nothing is known. Temporary files, staging folders,
locks and logs of this machine are no part of the run directory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from raydpo.artifacts.durable import write_text
from raydpo.artifacts.object_store import PARALLEL
from raydpo.artifacts.placeholder import Stored, fetch_files, leave_out, left_out
from raydpo.errors import IntegrityError

STATE = ".objects.json"
_EAGER_BYTES = 1 << 18
"""Files up to this size are fetched when a run directory is opened."""
_LAZY = (
    "checkpoints",
    "references",
    "model",
    "model_merged",
    "merged",
    "data",
    "rounds",
    "initial",
    "profile",
    "replaced-",
)
"""Beginnings of what is fetched when it is asked for; everything else is written to as it is."""
_AT_ONCE = ("metrics.jsonl", "bad_batches.jsonl", ".json")
"""Ends of names: what a run that goes on appends to, and manifests."""

Tree = dict[str, Stored]
Sign = tuple[int, int, int]


@dataclass(frozen=True)
class Fresh:
    """A file whose content no object is known to hold: name below the folder, path and sign."""

    name: str
    path: Path
    sign: Sign


class WorkingCopy:
    """The copy in `folder` of the run directory at `url`."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self._url = folder, url
        self._known: dict[Sign, Stored] = {}

    def reconcile(self, tree: Mapping[str, Stored], inside: str | None = None) -> list[str]:
        """Make the folder what `tree` says, with placeholders for what is large and not known to be here. Returns a sentence
        for each file that was fetched and is damaged; it is left out, and so is a folder whose manifest it is.

        inside: only the file or folder of that name, and all of it is fetched.
        """
        self._known = self._kept_state()
        there, fresh = self.scan()
        wanted = {name: stored for name, stored in tree.items() if _lies_in(name, inside)}
        for name in {*there, *(each.name for each in fresh)} - tree.keys():
            if _lies_in(name, inside):
                (self.folder / name).unlink(missing_ok=True)
        for name, stored in wanted.items():
            if there.get(name) != stored:
                leave_out(self.folder / name, self._url, stored)
        eager = [name for name, stored in wanted.items() if inside is not None or _is_eager(name, stored)]
        with ThreadPoolExecutor(PARALLEL) as threads:
            problems = list(threads.map(self._fetched, eager))
        for name, problem in zip(eager, problems, strict=True):
            if not problem:
                self.know(sign_of(self.folder / name), tree[name])
        return [problem for problem in problems if problem]

    def _fetched(self, name: str) -> str:
        """Fetch a file; what is wrong with it, or an empty text."""
        try:
            self.read(name)
        except IntegrityError as error:
            (self.folder / name).unlink(missing_ok=True)
            return str(error)
        return ""

    def scan(self) -> tuple[Tree, list[Fresh]]:
        """(name -> object of what is known, files that are not)."""
        known, fresh = Tree(), list[Fresh]()
        for path in _files(self.folder):
            name = path.relative_to(self.folder).as_posix()
            with suppress(FileNotFoundError):
                if path.is_symlink():
                    if (found := left_out(path)) is not None:
                        known[name] = found[1]
                    continue
                sign = sign_of(path)
                if (stored := self._known.get(sign)) is not None:
                    known[name] = stored
                else:
                    fresh.append(Fresh(name, path, sign))
        return known, fresh

    def read(self, name: str) -> Path:
        """Path of a file, fetched."""
        fetch_files([self.folder / name])
        return self.folder / name

    def know(self, sign: Sign, stored: Stored) -> None:
        """From now on the file with `sign` is the same as an object."""
        self._known[sign] = stored

    def keep_state(self, tree: Mapping[str, Stored]) -> None:
        """Remember for the next process of this machine which file is which object of `tree`; others are forgotten."""
        reached = set(tree.values())
        self._known = {sign: stored for sign, stored in self._known.items() if stored in reached}
        lines = [[*sign, stored.key, stored.bytes, stored.sha256] for sign, stored in self._known.items()]
        write_text(self.folder / STATE, json.dumps({"boot": _boot(), "url": self._url, "files": lines}))

    def _kept_state(self) -> dict[Sign, Stored]:
        try:
            state = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
            if (state["boot"], state["url"]) != (_boot(), self._url):
                return {}
            return {(line[0], line[1], line[2]): Stored(*line[3:]) for line in state["files"]}
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return {}


def _lies_in(name: str, inside: str | None) -> bool:
    return inside is None or name == inside or name.startswith(f"{inside}/")


def _is_eager(name: str, stored: Stored) -> bool:
    return stored.bytes <= _EAGER_BYTES or not name.startswith(_LAZY) or name.endswith(_AT_ONCE)


def sign_of(path: Path) -> Sign:
    """Inode, size and time of change of a file."""
    found = path.lstat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _files(folder: Path) -> Iterator[Path]:
    """Everything below `folder` that belongs to the run directory."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "log" and _belongs(name))
        yield from (Path(parent, name) for name in sorted(files) if name != "lock" and _belongs(name))


def _belongs(name: str) -> bool:
    """Whether a name is one of the run directory: hidden ones are not, but for what preparations and rounds have done."""
    return not name.startswith(".") or name.startswith(".parts-") or name.endswith("-work")


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
