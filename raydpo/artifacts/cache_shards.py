"""The shards of a cache folder: which there are, what was committed of each, and their rows, verified.

Comes in: the folder of a cache. Goes out: commit records and tables. Decision: a shard whose rows a larger one took over
(`replaced.py`) is passed over, though its files are there until `cache gc`. The price is a look at the lists of those.
"""

from __future__ import annotations

import os
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raydpo.artifacts.arrow import ShardRecord, read_shard
from raydpo.artifacts.cache_records import read_record, shard_names
from raydpo.artifacts.key_index import keys_of
from raydpo.artifacts.replaced import all_replaced, replacements
from raydpo.errors import IntegrityError
from raydpo.schema.rows import LOGPROBS

_MOST_MAPPED = 8192
"""Shards whose tables are kept: each is a mapping, of which a process may have some 65,000."""


class VerifiedShard:
    """The rows of a shard that was verified. num_rows, num_tokens, num_bytes: of the table, which is kept or read again."""

    def __init__(self, folder: Path, record: ShardRecord, table: pa.Table, *, is_kept: bool) -> None:
        self.record, self._folder = record, folder
        self.num_rows, self.num_bytes = len(table), table.nbytes
        self.num_tokens = int(pc.sum(table["num_tokens"]).as_py() or 0)
        self._table = table if is_kept else None
        self._keys = None if is_kept else keys_of(table)

    def keys(self) -> np.ndarray:
        """Of all rows: [n] S32."""
        return keys_of(self.table()) if self._keys is None else self._keys

    def table(self) -> pa.Table:
        """All rows. Raises IntegrityError where they have to be read again and are not what they were."""
        return read_verified(self._folder, self.record, is_mapped=False) if self._table is None else self._table


def whole_table(shards: Iterable[VerifiedShard]) -> pa.Table:
    """Rows of all shards, those that stand in several of them several times."""
    return pa.concat_tables([LOGPROBS.empty_table(), *(shard.table() for shard in shards)])


def read_shards(
    folder: Path, known: Mapping[str, VerifiedShard], skip: Callable[[str], bool] = lambda _: False
) -> tuple[dict[str, VerifiedShard], list[tuple[str, str]]]:
    """The shards that verify, by name, and (name, problem) of each that does not.

    known: shards that were verified before; they are not read again where their record is the same. skip: whether a shard is
    passed over. What a merged shard replaced takes its place where it is damaged.
    """
    found, damaged, passed = dict[str, VerifiedShard](), [], list[str]()
    lists = replacements(folder)
    hidden, names = all_replaced(lists), deque(shard_names(folder))
    while names:
        name = names.popleft()
        if skip(name):
            continue
        try:
            record = read_record(folder, name)
            if record.name in hidden:
                passed.append(name)
            elif name in known and known[name].record == record:
                found[name] = known[name]
            else:
                table = read_verified(folder, record)
                found[name] = VerifiedShard(folder, record, table, is_kept=len(found) < _MOST_MAPPED)
        except IntegrityError as error:
            damaged.append((name, str(error)))
            back = lists.pop(name, {})
            hidden = all_replaced(lists)
            names.extend(each for each in passed if each in back)
    return {name: found[name] for name in sorted(found)}, damaged


def live_names(folder: Path) -> list[str]:
    """Names of the shards that count: those with a commit record, valid or not, that no other one replaces."""
    hidden = dict[str, set[str]]()
    for shards in replacements(folder).values():
        for name, file in shards.items():
            hidden.setdefault(name, set()).add(file)
    return [name for name in shard_names(folder) if name not in hidden or not _is_one_of(folder, name, hidden[name])]


def _is_one_of(folder: Path, name: str, files: set[str]) -> bool:
    try:
        return read_record(folder, name).name in files
    except IntegrityError:
        return False


def read_verified(folder: Path, record: ShardRecord, is_mapped: bool = True) -> pa.Table:
    """Rows of a shard, mapped or in memory. Raises IntegrityError."""
    path = folder / "shards" / record.name
    table = read_shard(path, record, LOGPROBS, is_mapped=is_mapped)
    lists = table["token_nats"].combine_chunks()
    values = lists.values.to_numpy(zero_copy_only=False)
    if not (np.isfinite(values).all() and (values <= 0).all()):
        raise IntegrityError(f"{path} holds a value that is not a log-probability (finite and at most 0)")
    if not np.array_equal(np.diff(lists.offsets.to_numpy()), table["num_tokens"].to_numpy()):
        raise IntegrityError(f"{path} holds rows whose length is not their num_tokens")
    return table


def set_aside(folder: Path, name: str) -> None:
    """Move a damaged shard out of the cache. Another run may do the same at the same time."""
    (folder / "damaged").mkdir(exist_ok=True)
    suffix = uuid.uuid4().hex[:6]
    files = [f"{name}.json"]  # the record first: without it the shard does not exist
    with suppress(IntegrityError):  # which file a damaged record meant is unknown: that one is left to `cache gc`
        files.append(read_record(folder, name).name)
    for file in files:
        with suppress(FileNotFoundError):
            os.replace(folder / "shards" / file, folder / "damaged" / f"{suffix}-{file}")
