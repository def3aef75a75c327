"""Row keys of shards: as bytes, and which row has one.

Comes in: shards, tables in the schema `LOGPROBS`. Goes out: rows and values. Decision: a sorted copy of the keys, 32 bytes a
row, and the values where the mapped files have them. The price is that an index of all shards reads all keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from raydpo.artifacts.arrow import fixed_keys
from raydpo.errors import IntegrityError
from raydpo.schema.rows import KEY_LENGTH

if TYPE_CHECKING:
    from raydpo.artifacts.cache_shards import VerifiedShard


class KeyIndex:
    """Sorted keys -> rows of shards, by binary search over the whole batch of keys."""

    def __init__(self, shards: Sequence[VerifiedShard]) -> None:
        self._shards = tuple(shards)
        keys = np.concatenate([np.zeros(0, f"S{KEY_LENGTH}"), *(shard.keys() for shard in shards)])
        self._order = np.argsort(keys, kind="stable")
        self._sorted = keys[self._order]
        self._ends = np.cumsum([shard.num_rows for shard in shards], dtype=np.int64)

    def find(self, wanted: np.ndarray) -> np.ndarray:
        """Row of each key, [n] bytes of any width; -1 where there is none."""
        if not len(self._sorted) or not len(wanted):
            return np.full(len(wanted), -1)
        at = np.minimum(np.searchsorted(self._sorted, wanted), len(self._sorted) - 1)
        return np.where(self._sorted[at] == wanted, self._order[at], -1)

    def lookup(self, keys: Sequence[str], folder: Path) -> list[np.ndarray]:
        """Values of each key. Raises IntegrityError, with the folder of the cache, when one is missing."""
        places = self.find(
            np.array([key.encode() for key in keys])
        )  # as wide as they are: none is cut to one that fits
        if (places < 0).any():
            absent = [key for key, place in zip(keys, places, strict=True) if place < 0]
            raise IntegrityError(
                f"{len(absent)} of {len(keys)} rows are not in the reference cache {folder} (first: {absent[0]}). "
                "Run raydpo precompute with the same config."
            )
        found = [np.zeros(0, np.float32)] * len(keys)
        shards = np.searchsorted(self._ends, places, side="right")
        for shard in np.unique(shards).tolist():  # a shard once: those that are not kept are read here
            table = self._shards[shard].table()
            start = int(self._ends[shard]) - len(table)
            for number in np.flatnonzero(shards == shard).tolist():
                found[number] = nats_of(table, int(places[number]) - start)
        return found

    def distinct(self) -> np.ndarray:
        """Rows in their order, the first of each key."""
        _, first = np.unique(self._sorted, return_index=True)
        return np.sort(self._order[first])


def nats_of(table: pa.Table, row: int) -> np.ndarray:
    """Values of a row of a shard, a view of them."""
    for lists in table["token_nats"].chunks:
        if row < len(lists):
            start, end = lists.offsets[row].as_py(), lists.offsets[row + 1].as_py()
            found: np.ndarray = lists.values.to_numpy(zero_copy_only=False)[start:end]
            return found
        row -= len(lists)
    raise IndexError(row)


def bytes_of(keys: pa.StringArray) -> np.ndarray:
    """Keys as [n] S32, a view of them where each has that length."""
    found = fixed_keys(keys)
    return np.array(keys.to_pylist(), dtype=f"S{KEY_LENGTH}") if found is None else found


def keys_of(table: pa.Table) -> np.ndarray:
    """Keys of all rows of a shard: [n] S32."""
    return np.concatenate([np.zeros(0, f"S{KEY_LENGTH}"), *map(bytes_of, table["row_key"].chunks)])
