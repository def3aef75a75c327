"""A committed piece of a round: rows in JSON lines, written part by part, that count once their manifest is there.

Comes in: what the piece depends on (`inputs`, any JSON value). Goes out: rows. Decision: parts of an unfinished piece are
whole files under final names, so an attempt that goes on takes them as they are; a piece or part that was made from other
inputs is not taken. Price: a file a part.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from raydpo.artifacts import commit_folder, digest_of, fetch, read_commit, settle, verify_folder, write_json, write_text
from raydpo.errors import IntegrityError
from raydpo.runtime import deferred
from raydpo.schema.json_text import parse_json, read_object

Rows = list[dict[str, Any]]
_PART = re.compile(r"part-(\d+)\.jsonl", re.ASCII)


class Piece:
    """The folder `folder`, which depends on `inputs`."""

    def __init__(self, folder: Path, inputs: Any) -> None:
        self.folder = folder
        self._inputs = digest_of(inputs)
        self._work = folder.with_name(f".{folder.name}-work")

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

    def begin(self) -> None:
        """Make room for parts; those of an attempt with the same inputs stay."""
        fetch(self._work)
        mark = self._work / "inputs.json"
        if _inputs_of(mark) != self._inputs:
            shutil.rmtree(self._work, ignore_errors=True)
            self._work.mkdir(parents=True)
            write_json(mark, {"inputs": self._inputs})

    def has_part(self, number: int) -> bool:
        return self._part(self._work, number).is_file()

    def write_part(self, number: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Make part `number` durable."""
        write_text(self._part(self._work, number), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        settle(self._work, is_urgent=False)

    def drop_part(self, number: int) -> None:
        """Forget an uncommitted part: the next attempt makes it again."""
        self._part(self._work, number).unlink(missing_ok=True)

    def uncommitted(self, number: int) -> Rows:
        """Rows of a part before the piece is committed."""
        return _read(self._part(self._work, number))

    def write(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """A file of its own name, instead of parts."""
        write_text(self._work / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def commit(self, meta: Mapping[str, Any]) -> None:
        """All parts are there: make them count."""
        with deferred():  # what is replaced is damaged, or of other inputs, and does not stay half removed
            commit_folder(self._work, self.folder, {**meta, "inputs": self._inputs}, replace=True)

    def rows(self, name: str | None = None) -> Iterator[dict[str, Any]]:
        """Rows of the committed piece, in the order of its parts; or of one file. Raises IntegrityError."""
        for part in in_order(self.folder, read_commit(self.folder)["files"]) if name is None else [name]:
            yield from _read(self.folder / part)

    @staticmethod
    def _part(folder: Path, number: int) -> Path:
        return folder / f"part-{number:05d}.jsonl"


def in_order(folder: Path, names: Iterable[str]) -> list[str]:
    """Those of `names` that are parts, by number: as text, part 100000 would stand before part 99999.

    folder: for the message. Raises IntegrityError where a number is missing.
    """
    found = {int(part[1]): name for name in names if (part := _PART.fullmatch(name))}
    if missing := set(range(len(found))) - set(found):
        raise IntegrityError(
            f"{folder} has {len(found)} parts, up to number {max(found)}, and no part {min(missing)}; rows would be taken for "
            "those of other prompts. Remove the folder: the same command makes it again."
        )
    return [found[number] for number in range(len(found))]


def _inputs_of(mark: Path) -> object:
    """What parts of an unfinished piece were made from; None where that is not known."""
    try:
        return read_object(mark).get("inputs")
    except (OSError, ValueError):
        return None


def _read(path: Path) -> Rows:
    try:
        return [parse_json(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}. Remove it: the same command makes it again.") from error
