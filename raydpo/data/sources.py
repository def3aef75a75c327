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
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from raydpo.artifacts.digest import file_sha256
from raydpo.artifacts.input_copies import copied
from raydpo.artifacts.mirror_path import shown
from raydpo.config.places import is_in_store, reads_only
from raydpo.data.columns_read import batches_of
from raydpo.data.read import Line, dataset_rows, file_rows, kind_of
from raydpo.data.splits import Parts, Role, Split, by_name, split_of
from raydpo.errors import DataError

_HUB = re.compile(
    r"hub:(?P<id>[\w.-]+/[\w.-]+)(?:/(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?(?::(?P<split>[\w.\[\]%:+-]+))?"
)


def printable(path: Path) -> str:
    """`path`, or the address that it is a copy of, as text that can be written anywhere, also when it is not UTF-8."""
    return os.fsencode(shown(path)).decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class FileSource:
    """One file of rows. shown: its name in messages; None: its path."""

    path: Path
    shown: str | None = None

    @property
    def name(self) -> str:
        return self.shown or printable(self.path)

    def digest(self) -> str:
        """sha256 of the bytes. Raises DataError for a file that cannot be read."""
        try:
            return file_sha256(self.path)
        except OSError as error:
            raise DataError(f"{self.name} cannot be read: {error.strerror}. Check its permissions.") from error

    def rows(self) -> Iterator[Line]:
        return file_rows(self.path)


@dataclass(frozen=True)
class FolderSource:
    """A folder that `Dataset.save_to_disk` wrote. shown: its name in messages; None: its path."""

    path: Path
    shown: str | None = None

    @property
    def name(self) -> str:
        return self.shown or printable(self.path)

    def digest(self) -> str:
        """sha256 of each file, joined."""
        return " ".join(f"{file.name}:{file_sha256(file)}" for file in sorted(self.path.iterdir()) if file.is_file())

    def rows(self) -> Iterator[Line]:
        from datasets import load_from_disk

        for file in sorted(self.path.glob("*.arrow")):
            for _ in batches_of(file, "arrow"):  # the library would read it in this process, as it is
                pass
        try:
            dataset = load_from_disk(str(self.path))
        except Exception as error:  # files of JSON that the library takes as they are: whatever they lead to
            raise DataError(
                f"{self.path} looks like a save_to_disk folder but cannot be loaded: {error or repr(error)}. Write it again "
                "with Dataset.save_to_disk, or give its files one by one."
            ) from error
        return dataset_rows(dataset, self.name)


@dataclass(frozen=True)
class HubSource:
    """A split of a data set on the hub.

    spec: as configured.
    id: of the data set.
    config, revision: of the data set, None for its defaults.
    split: which one.
    is_split_given: the spec names the split; else it is `train`, or what `find_parts` chose.
    """

    spec: str
    id: str
    config: str | None
    revision: str | None
    split: str
    is_split_given: bool = True

    @property
    def name(self) -> str:
        return self.spec

    def splits(self) -> list[str]:
        """Names of all splits of the data set. Raises DataError when the hub cannot be asked."""
        from datasets import get_dataset_split_names

        try:
            return list(get_dataset_split_names(self.id, self.config, revision=self.revision))
        except Exception as error:  # the library raises whatever its many backends raise
            raise self._refused(error) from error

    def of_split(self, split: str) -> HubSource:
        """Another split of the same data set, named in its spec."""
        return HubSource(f"{self.spec}:{split}", self.id, self.config, self.revision, split)

    @cached_property
    def _dataset(self) -> Any:
        from datasets import load_dataset

        try:
            return load_dataset(self.id, self.config, split=self.split, revision=self.revision)
        except Exception as error:  # the library raises whatever its many backends raise
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> DataError:
        return DataError(
            f"{self.spec} could not be loaded from the hub: {(str(error) or repr(error)).splitlines()[0]}. "
            "The form is hub:owner/name@revision:split (hub:owner/name/config@revision:split for one of several "
            "configurations). Without network, download the files elsewhere and name them in data.train."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Without the loaded data set: another process loads it from the cache of its own machine."""
        return HubSource, (self.spec, self.id, self.config, self.revision, self.split, self.is_split_given)

    @property
    def num_rows(self) -> int:
        return len(self._dataset)

    def digest(self) -> str:
        """Fingerprint of the loaded files: changes with the commit."""
        info = self._dataset.info
        files = sorted((info.download_checksums or {}).items())
        return f"{self.id} {self.config} {self.split} {files!r} {self._dataset._fingerprint}"

    def rows(self) -> Iterator[Line]:
        return dataset_rows(self._dataset, self.spec)


Source = FileSource | FolderSource | HubSource
Part = tuple[str, Split | None, Source]
"""Its name within a data set, the split that this says, and itself."""


@dataclass(frozen=True)
class Found:
    """What the names under a key stand for.

    sources: what is read, in order.
    held_out: what data sets that are split by name hold out, of a key of training data.
    notes: which splits were taken, for the log.
    problems: a sentence for each name that finds nothing.
    """

    sources: list[Source] = field(default_factory=list)
    held_out: list[Source] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def find(key: str, names: Sequence[str]) -> tuple[list[Source], list[str]]:
    """Sources that `names` (the value of config key `key`) stand for, and a problem for each name that finds none."""
    found = find_parts(key, names)
    return found.sources, found.problems


def find_parts(key: str, names: Sequence[str], *, asks_hub: bool = False) -> Found:
    """As `find`, with what is held out by name. asks_hub: ask which splits a hub data set has where none is named (needs the
    network); else its `train` split is read."""
    found = Found()
    role: Role = "eval" if "eval" in key else "train"
    for name in names:
        try:
            parts = _parts(name, role, asks_hub)
        except DataError as error:
            found.problems.extend(f"{key}: {problem}" for problem in error.problems)
            continue
        found.sources.extend(parts.used)
        found.held_out.extend(parts.held_out)
        found.notes.extend([f"{key}: {parts.note}"] if parts.note else [])
    return found


def _parts(name: str, role: Role, asks_hub: bool) -> Parts[Source]:
    if name.startswith("hub:"):
        return _hub(name, role, asks_hub)
    if "\0" in name:
        raise DataError(f"{name!r} holds a NUL character, which no path has; write the path without it.")
    is_remote = is_in_store(name) or reads_only(name)
    path = copied(name, _is_data) if is_remote else Path(name).expanduser()
    if path.is_dir():
        return by_name(name, _folder(path), role)
    if path.exists():
        if kind_of(path) is None:
            raise DataError(f"{name!r} has an ending that is not known; {_ENDINGS}")
        return Parts([_file(path)], [])
    if not glob.has_magic(name):
        if is_remote:
            raise DataError(f"{name!r} does not exist, and no data file lies below it; {_ENDINGS}")
        link = f", a link that leads nowhere: to {os.readlink(path)!r}" if path.is_symlink() else ""
        hub = f" A data set of the hub is written hub:{name}." if _HUB_ID.fullmatch(name) else ""
        raise DataError(f"{name!r} does not exist (looked for {path.absolute()}{link}).{hub}")
    matched = _once(sorted(Path(found) for found in glob.glob(str(path), recursive=True)))
    parts = [part for found in matched for part in (_folder(found) if found.is_dir() else _known(found))]
    if not parts:
        raise DataError(f"{name!r} matches no data file; {_ENDINGS}")
    if all(split_of(found.name) in ("validation", "test") for found in matched):
        return Parts([source for *_, source in parts], [])  # a pattern of held-out files alone names them
    return by_name(name, parts, role)


def _hub(name: str, role: Role, asks_hub: bool) -> Parts[Source]:
    match = _HUB.fullmatch(name)
    if match is None:
        raise DataError(f"{name!r} is not a hub data set; the form is hub:owner/name@revision:split.")
    is_given = match["split"] is not None
    source = HubSource(name, match["id"], match["config"], match["revision"], match["split"] or "train", is_given)
    if is_given or not asks_hub:
        return Parts([source], [])
    splits = source.splits()
    exact = [one for one in splits if one in ("train", "validation", "valid", "val", "dev", "eval", "test")]
    if "train" not in exact and (role == "train" or not exact):
        raise DataError(
            f"{name!r} has no split of the name train; it has {', '.join(splits)}. Name one: {name}:{splits[0]}."
        )
    return by_name(name, [(one, split_of(one), source.of_split(one)) for one in exact], role)


_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?(:\w+)?")
"""What looks like an id of the hub: owner/name, perhaps with a revision and a split."""
_ENDINGS = (
    "allowed are .jsonl, .ndjson, .json, .csv, .tsv (each also .gz or .zst), .parquet, .arrow, .feather, and save_to_disk "
    "folders."
)
_NO_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
"""What the datasets library writes next to data."""


def _is_data(name: str) -> bool:
    """Whether a file of a folder is copied: data, and what the datasets library writes next to it."""
    return kind_of(Path(name)) is not None or name in _NO_DATA


def _known(path: Path) -> list[Part]:
    is_data = kind_of(path) is not None and path.name not in _NO_DATA
    return [(path.name, split_of(path.name), _file(path))] if is_data else []


_NO_FILES = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def _file(path: Path) -> FileSource:
    """The source of a regular file. Raises DataError for what is read once, or for ever."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}. Repair the link, or remove it.") from error
    for is_one, what in _NO_FILES:
        if is_one(mode):
            raise DataError(
                f"{str(path)!r} is {what}, and rows are read more than once, the first time for their digest; nothing was "
                "read. Write them to a file and name that."
            )
    return FileSource(path)


def _once(paths: Sequence[Path]) -> list[Path]:
    """`paths` without those that lead to a file met before, by links to folders that lie around them."""
    found: dict[str, Path] = {}
    for path in paths:
        found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def _is_saved(path: Path) -> bool:
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


def _folder(path: Path) -> list[Part]:
    """Parts of a folder: its files, and what is in folders inside whose names say a split, or that are called `data`."""
    if _is_saved(path):
        return [(path.name, None, FolderSource(path))]
    parts = [part for file in sorted(path.iterdir()) if not file.is_dir() for part in _known(file)]
    for child in sorted(child for child in path.iterdir() if child.is_dir()):
        split = split_of(child.name)
        if _is_saved(child) and (split is not None or (path / "dataset_dict.json").is_file()):
            parts.append((child.name, split, FolderSource(child)))
        elif split is not None or (child.name == "data" and not parts):
            files = [part for file in sorted(child.iterdir()) if not file.is_dir() for part in _known(file)]
            parts += [(f"{child.name}/{name}", split or own, source) for name, own, source in files]
    if not parts:
        raise DataError(f"{str(path)!r} is a folder without data files; {_ENDINGS}")
    return parts
