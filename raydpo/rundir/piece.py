"""A committed piece of a round: rows, written part by part, that count once their manifest is there.

Comes in: what the piece depends on (`inputs`, any JSON value). Goes out: rows. Decision: parts of an unfinished piece are
whole files under final names, so an attempt that goes on takes them as they are; a piece or part that was made from other
inputs is not taken. Price: a file a part.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from raydpo.artifacts import (
    commit_folder,
    digest_of,
    fetch,
    file_sha256,
    read_commit,
    require_lease,
    settle,
    verify_folder,
    write_json,
)
from raydpo.artifacts.arrow import is_hash_of
from raydpo.errors import IntegrityError
from raydpo.rundir.on_demand import OnDemand
from raydpo.rundir.piece_parts import Rows, in_order, number_of, read_part, write_lines, write_part
from raydpo.runtime import deferred
from raydpo.schema.json_text import read_object


class Piece:
    """The folder `folder`, which depends on `inputs`. inputs_digest: of those inputs, where nobody holds them as one value."""

    def __init__(self, folder: Path, inputs: Any, inputs_digest: str | None = None) -> None:
        self.folder = folder
        self._inputs = digest_of(inputs) if inputs_digest is None else inputs_digest
        self._work = folder.with_name(f".{folder.name}-work")
        self._written: dict[str, tuple[int, str]] = {}
        self._names: dict[int, str] = {}

    @property
    def is_done(self) -> bool:
        """Whether it is committed, undamaged, and made from these inputs."""
        try:
            return bool(read_commit(self.folder)["meta"]["inputs"] == self._inputs) and not verify_folder(self.folder)
        except (IntegrityError, KeyError):
            return False

    @property
    def meta(self) -> dict[str, Any]:
        """What `commit` was given."""
        return dict(read_commit(self.folder)["meta"])

    @property
    def digest(self) -> str:
        """Of everything in the committed piece."""
        return digest_of(read_commit(self.folder))

    @property
    def inputs_digest(self) -> str:
        """Of what it depends on."""
        return self._inputs

    def begin(self, *, anew: bool = False) -> None:
        """Make room for parts; those of an attempt with the same inputs stay, unless it is to begin `anew`."""
        fetch(self._work)
        mark = self._work / "inputs.json"
        if anew or _inputs_of(mark) != self._inputs:
            shutil.rmtree(self._work, ignore_errors=True)
            self._work.mkdir(parents=True)
            write_json(mark, {"inputs": self._inputs})
        self._names = {number: names[0] for number, names in self._uncommitted().items()}

    def take_over(self, inputs: Any) -> None:
        """Parts that were made while of these inputs no more was known than `inputs` are parts of this piece."""
        fetch(self._work)
        mark = self._work / "inputs.json"
        if _inputs_of(mark) == digest_of(inputs):
            write_json(mark, {"inputs": self._inputs})

    def numbers(self) -> set[int]:
        """Of the parts that there are before the piece is committed."""
        return set(self._uncommitted())

    def has_part(self, number: int) -> bool:
        """Whether there is this one; `numbers` costs as much for all of them."""
        return number in self.numbers()

    def write_part(self, number: int, rows: pa.Table | Iterable[Mapping[str, Any]]) -> None:
        """Make part `number` durable, a table as Arrow and anything else as JSON lines."""
        record = write_part(self._work, number, rows)
        if record is not None:
            self._written[record.name] = record.bytes, record.sha256
            self._names[number] = record.name
        settle(self._work, is_urgent=False)

    def drop_part(self, number: int) -> None:
        """Forget an uncommitted part: the next attempt makes it again."""
        for name in self._uncommitted().get(number, ()):
            (self._work / name).unlink(missing_ok=True)

    def part(self, number: int) -> Rows:
        """Rows of a part that is there, be the piece committed or not. Raises IntegrityError, and removes
        one of an earlier attempt that is damaged."""
        name = self._names[number]
        work = self._work / name
        if not work.is_file():
            return read_part(self.folder / name)
        self._hashed(name)
        return read_part(work)

    def uncommitted(self) -> Iterator[tuple[int, Rows]]:
        """(number, rows) of each part before the piece is committed, a part at a time."""
        for number, names in sorted(self._uncommitted().items()):
            yield number, read_part(self._work / names[0])

    def write(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """A file of its own name, instead of parts: JSON lines."""
        write_lines(self._work / name, rows)

    def commit(self, meta: Mapping[str, Any]) -> None:
        """All parts are there: make them count. Raises IntegrityError, and removes it, for one of an earlier attempt that is
        damaged."""
        hashed = {name: self._hashed(name) for names in self._uncommitted().values() for name in names}
        with deferred():  # what is replaced is damaged, or of other inputs, and does not stay half removed
            commit_folder(self._work, self.folder, {**meta, "inputs": self._inputs}, replace=True, hashed=hashed)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows of the committed piece, in the order of its parts, of which one is held at a time. Raises IntegrityError."""
        for part in self.parts():
            yield from part

    def parts(self) -> OnDemand[Rows]:
        """The parts of the committed piece, in order; the rows of one are read when it is asked for. Raises IntegrityError."""
        paths = self.files()
        return OnDemand(len(paths), lambda number: read_part(paths[number]))

    def files(self) -> list[Path]:
        """The parts of the committed piece as files, in order. Raises IntegrityError."""
        return [self.folder / name for name in in_order(self.folder, read_commit(self.folder)["files"])]

    def _uncommitted(self) -> dict[int, list[str]]:
        """Number -> files of it, which is one."""
        found: dict[int, list[str]] = {}
        for path in self._work.glob("part-*"):
            if (number := number_of(path.name)) is not None:
                found.setdefault(number, []).append(path.name)
        return found

    def _hashed(self, name: str) -> tuple[int, str]:
        if name in self._written:
            return self._written[name]
        path = self._work / name
        try:
            size, sha256 = path.stat().st_size, file_sha256(path)
        except FileNotFoundError:
            require_lease(self.folder)  # another driver swept it away
            raise
        if name.endswith(".arrow") and not is_hash_of(name, sha256):
            path.unlink()
            raise IntegrityError(
                f"{path} was damaged since an earlier attempt wrote it; it was removed, and nothing of {self.folder.name} was "
                "committed. The same command makes it again."
            )
        return size, sha256


def _inputs_of(mark: Path) -> object:
    """What parts of an unfinished piece were made from; None where that is not known."""
    try:
        return read_object(mark).get("inputs")
    except (OSError, ValueError):
        return None
