"""What the strings of data.train and data.eval name: files, globs, folders, save_to_disk folders, hub data sets.

What goes out: `Source` objects in the given order, each with a name for messages, a digest of its content and its
rows. All missing paths are reported at once.
Decision: a hub data set is pinned to the commit that its revision names today, and the commit is part of the digest;
remote code is never run. Price: a hub id needs the network once, until its files are in the local cache.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from raydpo.artifacts.digest import file_sha256
from raydpo.data.read import Line, dataset_rows, file_rows, kind_of
from raydpo.errors import DataError

_HUB = re.compile(
    r"hub:(?P<id>[\w.-]+/[\w.-]+)(?:/(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?(?::(?P<split>[\w.\[\]%:+-]+))?"
)


def printable(path: Path) -> str:
    """`path` as text that can be written anywhere, also when its bytes are not UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class FileSource:
    """One file of rows."""

    path: Path

    @property
    def name(self) -> str:
        return printable(self.path)

    @property
    def is_columnar(self) -> bool:
        """Whether its rows have one schema, which fills nested fields that a row lacks with nulls."""
        return kind_of(self.path) in ("parquet", "arrow")

    def digest(self) -> str:
        """sha256 of the bytes."""
        return file_sha256(self.path)

    def rows(self) -> Iterator[Line]:
        return file_rows(self.path)


@dataclass(frozen=True)
class FolderSource:
    """A folder that `Dataset.save_to_disk` wrote."""

    path: Path
    is_columnar: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return printable(self.path)

    def digest(self) -> str:
        """sha256 of each file, joined."""
        return " ".join(f"{file.name}:{file_sha256(file)}" for file in sorted(self.path.iterdir()) if file.is_file())

    def rows(self) -> Iterator[Line]:
        from datasets import load_from_disk

        try:
            dataset = load_from_disk(str(self.path))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.path} looks like a save_to_disk folder but cannot be loaded: {error}. Write it again with "
                "Dataset.save_to_disk, or give its files one by one."
            ) from error
        return dataset_rows(dataset, self.name)


@dataclass(frozen=True)
class HubSource:
    """A split of a data set on the hub.

    spec: as configured.
    id: of the data set.
    config, revision: of the data set, None for its defaults.
    split: which one.
    """

    spec: str
    id: str
    config: str | None
    revision: str | None
    split: str
    is_columnar: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return self.spec

    @cached_property
    def _dataset(self) -> Any:
        from datasets import load_dataset

        try:
            return load_dataset(self.id, self.config, split=self.split, revision=self.revision)
        except Exception as error:  # the library raises whatever its many backends raise
            raise DataError(
                f"{self.spec} could not be loaded from the hub: {(str(error) or repr(error)).splitlines()[0]}. "
                "The form is hub:owner/name@revision:split (hub:owner/name/config@revision:split for one of several "
                "configurations). Without network, download the files elsewhere and name them in data.train."
            ) from error

    def digest(self) -> str:
        """Fingerprint of the loaded files: changes with the commit."""
        info = self._dataset.info
        files = sorted((info.download_checksums or {}).items())
        return f"{self.id} {self.config} {self.split} {files!r} {self._dataset._fingerprint}"

    def rows(self) -> Iterator[Line]:
        return dataset_rows(self._dataset, self.spec)


Source = FileSource | FolderSource | HubSource


def find(key: str, names: Sequence[str]) -> tuple[list[Source], list[str]]:
    """Sources that `names` (the value of config key `key`) stand for, and a problem for each name that finds none."""
    sources: list[Source] = []
    problems: list[str] = []
    for name in names:
        try:
            sources += _hub(name) if name.startswith("hub:") else _local(name)
        except DataError as error:
            problems += [f"{key}: {problem}" for problem in error.problems]
    return sources, problems


def _hub(name: str) -> list[Source]:
    match = _HUB.fullmatch(name)
    if match is None:
        raise DataError(f"{name!r} is not a hub data set; the form is hub:owner/name@revision:split.")
    return [HubSource(name, match["id"], match["config"], match["revision"], match["split"] or "train")]


def _local(name: str) -> list[Source]:
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.exists():
        if kind_of(path) is None:
            raise DataError(f"{name!r} has an ending that is not known; {_ENDINGS}")
        return [FileSource(path)]
    if not glob.has_magic(name):
        raise DataError(f"{name!r} does not exist (looked for {path.absolute()}).")
    matched = sorted(Path(found) for found in glob.glob(str(path), recursive=True))
    sources = [source for found in matched for source in (_folder(found) if found.is_dir() else _known(found))]
    if not sources:
        raise DataError(f"{name!r} matches no data file; {_ENDINGS}")
    return sources


_ENDINGS = "allowed are .jsonl, .ndjson, .json, .csv, .tsv (each also .gz or .zst), .parquet, .arrow, and save_to_disk folders."


def _known(path: Path) -> list[Source]:
    return [FileSource(path)] if kind_of(path) is not None else []


def _folder(path: Path) -> list[Source]:
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        return [FolderSource(path)]
    if (path / "dataset_dict.json").is_file():
        splits = sorted(str(child) for child in path.iterdir() if (child / "state.json").is_file())
        raise DataError(f"{str(path)!r} holds several splits; name the one that is meant: {', '.join(splits)}.")
    sources = [source for file in sorted(path.iterdir()) if file.is_file() for source in _known(file)]
    if not sources:
        raise DataError(f"{str(path)!r} is a folder without data files; {_ENDINGS}")
    return sources
