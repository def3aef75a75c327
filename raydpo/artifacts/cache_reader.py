"""What a trainer reads of a reference cache: rows by key, and nothing of shards that it reads no row of.

Comes in: the folder of a cache. Goes out: log-probs. Decision: the index of the cache is mapped, a shard is opened and
verified when a row of it is read for the first time, and of the shards that no index names all are opened at the first key
that it lacks. It is entered as a reader, so that nothing that it may still read is collected. Price: what is damaged after
the driver looked is met in the middle of a training.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from raydpo.artifacts.arrow import ShardRecord
from raydpo.artifacts.cache_index import MappedIndex
from raydpo.artifacts.cache_records import read_record
from raydpo.artifacts.cache_shards import read_shards, read_verified
from raydpo.artifacts.key_index import KeyIndex, bytes_of, nats_of
from raydpo.artifacts.open_readers import OpenReader
from raydpo.artifacts.remote_cache import pull_cache
from raydpo.artifacts.replaced import replacements
from raydpo.errors import IntegrityError

_MOST_OPEN = 4096
"""Shards: each is a mapping, of which a process may have some 65,000."""


class CacheReader:
    """Rows of the cache in `folder`, until `close`. num_verified, bytes_verified: shards that were verified so far."""

    def __init__(self, folder: Path) -> None:
        pull_cache(folder)
        self._reader = OpenReader(folder)
        lists = replacements(folder)
        self._gone = {name for shards in lists.values() for name in shards}
        self._folder, self._index = folder, MappedIndex.newest(folder)
        self._reader.found(lists, None if self._index is None else self._index.name)
        self._open: OrderedDict[str, pa.Table] = OrderedDict()
        self._rest: KeyIndex | None = None
        self.num_verified = self.bytes_verified = 0
        self._lock = threading.Lock()

    def close(self) -> None:
        """Nothing of the cache has to be kept for this reader any more."""
        self._reader.close()

    def lookup(self, keys: Sequence[str]) -> list[np.ndarray]:
        """Log-probs of each row's answer tokens in the loss, float32 nats. Raises IntegrityError when rows are missing.

        From any thread: the next batch is made while a split is evaluated.
        """
        with self._lock:
            return self._lookup(keys)

    def _lookup(self, keys: Sequence[str]) -> list[np.ndarray]:
        wanted = np.array([key.encode() for key in keys])
        places = np.full((len(keys), 2), -1) if self._index is None else self._index.find(wanted)
        found: dict[int, np.ndarray] = {}
        for number in np.argsort(places[:, 0], kind="stable").tolist():  # a shard once, however its rows are strewn
            shard, row = places[number].tolist()
            if shard >= 0 and (nats := self._row(shard, row, wanted[number])) is not None:
                found[number] = nats
        left = [number for number in range(len(keys)) if number not in found]
        try:
            rest = self._of_the_rest([keys[number] for number in left])
        except IntegrityError:
            if self._index is None:
                raise
            self._index = self._rest = None  # it may be damaged, or of shards that are gone: all are looked through
            return self._lookup(keys)
        found |= dict(zip(left, rest, strict=True))
        return [found[number] for number in range(len(keys))]

    def _row(self, shard: int, row: int, key: bytes) -> np.ndarray | None:
        """Values of a row, None where it is another one's: then the index is of other shards."""
        assert self._index is not None
        name = self._index.name_of(shard)
        try:
            table = self._shard(name) if name and name not in self._gone else None
        except IntegrityError:
            table = None
        if table is None or row >= len(table) or bytes_of(table["row_key"].chunk(0))[row] != key:
            return None
        return nats_of(table, row)

    def _shard(self, name: str) -> pa.Table:
        if name not in self._open:
            record = read_record(self._folder, name)
            self._open[name] = read_verified(self._folder, record).combine_chunks()
            self._count(record)
            if len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(name)
        return self._open[name]

    def _of_the_rest(self, keys: Sequence[str]) -> list[np.ndarray]:
        """Values of keys that the index lacks, from the shards that it does not name."""
        if not keys:
            return []
        if self._rest is None:
            found, _ = read_shards(
                self._folder, {}, self._names
            )  # a damaged one's rows are missing, as for every reader
            for shard in found.values():
                self._count(shard.record)
            self._rest = KeyIndex([*found.values()])
        return self._rest.lookup(keys, self._folder)

    def _names(self, name: str) -> bool:
        return self._index is not None and name not in self._gone and self._index.names(name)

    def _count(self, record: ShardRecord) -> None:
        self.num_verified, self.bytes_verified = self.num_verified + 1, self.bytes_verified + record.bytes
