"""The index of a reference cache on disk: which shard and row has a key, written by one process and mapped by all.

Layout: `<cache>/index/<digest>/`: keys.npy [n] S32, sorted; places.npy [n, 2] uint32, shard and row in it; shards.npy [m], the
names of shards, sorted. `<cache>/index.json` names the newest; older ones stay until `cache gc`, since somebody may map them.
Decision: it is a hint and no truth. Whoever finds a row by it compares the row's key, and looks through the shards that it
does not name for a key that it does not have; so it may be old, and needs no hash of its own.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from raydpo.artifacts.digest import digest_of
from raydpo.artifacts.durable import TEMPORARY, write_json
from raydpo.disk import full_disk
from raydpo.schema.json_text import read_object

POINTER, INDEX_FOLDER = "index.json", "index"


class MappedIndex:
    """An index that is on disk. name: of its folder. shards: names, sorted."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self._keys = np.load(folder / "keys.npy", mmap_mode="r")
        self._places = np.load(folder / "places.npy", mmap_mode="r")
        self.shards = np.load(folder / "shards.npy", mmap_mode="r")
        kinds = (self._keys.dtype.kind, self._places.dtype, self.shards.dtype.kind, self._keys.ndim, self.shards.ndim)
        if kinds != ("S", np.uint32, "S", 1, 1) or self._places.shape != (len(self._keys), 2):
            raise ValueError(f"{folder} holds no index")

    @classmethod
    def newest(cls, cache: Path) -> MappedIndex | None:
        """The index that the folder of a cache names; None where there is none, or none that can be read."""
        name = newest_name(cache)
        try:
            return None if name is None else cls(cache / INDEX_FOLDER / name)
        except (OSError, ValueError, EOFError):
            return None

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Of each key, [n] bytes, the number of its shard and its row there, -1 and -1 for a key that it has not: [n, 2]."""
        found = np.full((len(keys), 2), -1, np.int64)
        if len(self._keys) and len(keys):
            at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
            is_there = self._keys[at] == keys
            found[is_there] = self._places[at[is_there]]
        return found

    def names(self, name: str) -> bool:
        """Whether it has the rows of shard `name`."""
        at = int(np.searchsorted(self.shards, name.encode()))
        return at < len(self.shards) and bool(self.shards[at] == name.encode())

    def name_of(self, shard: int) -> str:
        """Name of a shard; empty where it has none that a file could have."""
        name = bytes(self.shards[shard]).decode("utf-8", "replace") if shard < len(self.shards) else ""
        return "" if "/" in name or "\0" in name else name


def newest_name(cache: Path) -> str | None:
    """Name of the folder of the newest index, None where there is none."""
    try:
        return Path(str(read_object(cache / POINTER)["index"])).name
    except (OSError, ValueError, KeyError):
        return None


def write_index(cache: Path, keys_of: Mapping[str, np.ndarray]) -> None:
    """Write the index of shards (name -> keys of its rows, [n] S32) and make it the newest. Raises StorageError."""
    names = sorted(keys_of)
    keys = np.concatenate([np.zeros(0, "S32"), *(keys_of[name] for name in names)])
    sizes = [len(keys_of[name]) for name in names]
    places = np.empty((len(keys), 2), np.uint32)
    places[:, 0] = np.repeat(np.arange(len(names)), sizes)
    places[:, 1] = np.concatenate([np.zeros(0, np.int64), *(np.arange(size) for size in sizes)])
    order = np.argsort(keys, kind="stable")
    columns = {"keys": keys[order], "places": places[order], "shards": np.array([name.encode() for name in names])}
    final = cache / INDEX_FOLDER / digest_of(names)[:24]
    if final.is_dir():  # whole, since it got its name at once; somebody may map it
        write_json(cache / POINTER, {"index": final.name})
        return
    staging = final.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:12]}")
    with full_disk(final):
        try:
            staging.mkdir(parents=True)
            for name, column in columns.items():
                np.save(staging / f"{name}.npy", column)
            try:
                os.rename(staging, final)
            except OSError:
                if not final.is_dir():  # else another run wrote the same meanwhile
                    raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    write_json(cache / POINTER, {"index": final.name})
