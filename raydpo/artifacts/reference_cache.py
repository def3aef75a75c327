"""The reference cache: per-token log-probs by row key, in verified shards that many runs and workers share.

Layout: `<cache_dir>/<identity>/identity.json`, `shards/<name>.json` (the commit record: file, rows, bytes, sha256, and a
digest over itself) with `shards/<name>-<hash>.arrow`, `damaged/` for shards that failed their check.
Decision: one commit record a shard instead of one manifest for all, so that any number of runs add shards without a
lock; two that write one shard with values a little different never share a file, and the last record counts. A row that
stands in two shards is harmless; a shard without a valid record does not exist.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from raydpo.artifacts.arrow import ShardRecord, fixed_keys, hashed_name, read_shard, write_shard
from raydpo.artifacts.cache_index import MappedIndex, write_index
from raydpo.artifacts.digest import digest_of
from raydpo.artifacts.durable import crash_point, write_json
from raydpo.artifacts.mirror_path import local_path
from raydpo.artifacts.remote_cache import pull_cache, push_shard
from raydpo.errors import IntegrityError, StorageError, UserError
from raydpo.schema.json_text import read_object
from raydpo.schema.rows import KEY_LENGTH, LOGPROBS

IDENTITY = "identity.json"
FEW_SHARDS = 16
"""So many that no index names cost a reader little."""


@dataclass(frozen=True)
class CacheIdentity:
    """Everything that decides a reference value in addition to the row itself.

    weights: digest of the weight files.
    adapter: digest of the adapter on them; "none" of a full model.
    tokenizer: digest of the tokenizer.
    dtype: compute dtype.
    attention: class of attention kernels, with the kind of device.
    algorithm: version of the log-prob function.
    """

    weights: str
    adapter: str
    tokenizer: str
    dtype: str
    attention: str
    algorithm: str

    @property
    def digest(self) -> str:
        """32 hex digits: the name of the cache folder."""
        return digest_of(asdict(self))[:32]


class ReferenceCache:
    """One cache. `open` verifies it and builds the index; `write_shard` needs no `open` and works in any process."""

    def __init__(self, cache_dir: Path, identity: CacheIdentity) -> None:
        self.folder = cache_dir / identity.digest
        self.identity = identity
        self.damaged: list[str] = []
        self._shards_open: dict[str, tuple[ShardRecord, pa.Table]] = {}
        self._index = KeyIndex([])

    def open(self, *, is_owner: bool = True) -> ReferenceCache:
        """Verify every shard, set damaged ones aside (they are scored again), and index the rows. Returns self.

        is_owner: False for a reader that scores nothing; it leaves damaged shards where they are.
        """
        pull_cache(self.folder)
        self._shards_open, found = read_shards(self.folder, self._shards_open)
        for name, _ in found:
            try:  # reading the others took time: another run may have scored this one again by now
                record = read_record(self.folder, name)
                self._shards_open[name] = record, read_verified(self.folder, record)
            except IntegrityError as error:
                if is_owner:
                    with suppress(PermissionError):  # a cache that can only be read keeps it, and nobody uses it
                        set_aside(self.folder, name)
                self.damaged.append(f"{error}; its rows will be scored again")
        self._index = KeyIndex([table for _, table in self._shards_open.values()])
        if self._shards_open:
            with suppress(OSError):  # a read-only cache can still be used
                os.utime(self.folder / IDENTITY)
        return self

    def missing(self, keys: Sequence[str]) -> list[str]:
        """Those of `keys` that the cache does not hold, in order, each once."""
        distinct = list(dict.fromkeys(keys))
        present = self.holds(np.array([key.encode() for key in distinct]))
        return [key for key, is_present in zip(distinct, present, strict=True) if not is_present]

    def holds(self, keys: np.ndarray) -> np.ndarray:
        """Whether the cache holds each of `keys`, [n] bytes: [n] bool."""
        found: np.ndarray = self._index.find(keys) >= 0
        return found

    def lookup(self, keys: Sequence[str]) -> list[np.ndarray]:
        """Log-probs of each row's answer tokens in the loss, float32 nats. Raises IntegrityError when rows are missing."""
        return self._index.lookup(keys, self.folder)

    def table(self) -> pa.Table:
        """Every row, in the schema `LOGPROBS`; a key that stands in two shards comes once."""
        tables = [table for _, table in self._shards_open.values()]
        return pa.concat_tables([LOGPROBS.empty_table(), *tables]).take(pa.array(self._index.distinct()))

    def write_index(self) -> None:
        """Let readers map an index of what is open, unless one names almost all of it or there is little."""
        index = MappedIndex.newest(self.folder)
        fresh = sum(index is None or not index.names(name) for name in self._shards_open)
        if fresh > FEW_SHARDS:
            with suppress(PermissionError):  # a cache that can only be read is read shard by shard
                write_index(self.folder, {name: keys_of(table) for name, (_, table) in self._shards_open.items()})

    def write_shard(self, name: str, row_keys: Sequence[str], token_nats: Sequence[np.ndarray]) -> ShardRecord:
        """Commit one shard. Writing the same name again replaces it by the same rows: harmless."""
        self._write_identity()
        nats = [np.asarray(values, dtype=np.float32) for values in token_nats]
        lengths = [len(values) for values in nats]
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        flat = pa.array(np.concatenate(nats) if nats else np.zeros(0, np.float32))
        columns = [
            pa.array(row_keys, pa.string()),
            pa.ListArray.from_arrays(offsets, flat),
            pa.array(lengths, pa.int32()),
        ]
        record = write_shard(
            self._shards / f"{name}.arrow", pa.Table.from_arrays(columns, schema=LOGPROBS), add_hash=True
        )
        crash_point("shard:before-record")
        body = asdict(record)
        signed = {**body, "digest": digest_of(body)}
        try:
            write_json(self._shards / f"{name}.json", signed)
        except StorageError:
            if record.name not in recorded_files(self.folder):  # it may be another run's, too
                (self._shards / record.name).unlink(missing_ok=True)
            raise
        crash_point("shard:after-record")
        push_shard(self.folder, name, signed)
        return record

    @property
    def claims(self) -> Path:
        """Where runs claim the shards that they score."""
        return self.folder / "claims"

    def has_shard(self, name: str) -> bool:
        """Whether shard `name` is committed now, by whomever. Its rows are not verified."""
        try:
            return (self._shards / read_record(self.folder, name).name).is_file()
        except IntegrityError:
            return False

    @property
    def _shards(self) -> Path:
        return self.folder / "shards"

    def _write_identity(self) -> None:
        if not (self.folder / IDENTITY).is_file():
            write_json(self.folder / IDENTITY, asdict(self.identity))


class KeyIndex:
    """Sorted keys -> rows of tables, by binary search over the whole batch of keys."""

    def __init__(self, tables: Sequence[pa.Table]) -> None:
        keys = np.concatenate([np.zeros(0, f"S{KEY_LENGTH}"), *map(keys_of, tables)])
        self._order = np.argsort(keys, kind="stable")
        self._sorted = keys[self._order]
        chunks = [chunk for table in tables for chunk in table["token_nats"].chunks]  # views of the mapped files
        self._ends = np.cumsum([len(chunk) for chunk in chunks], dtype=np.int64)
        self._offsets = [chunk.offsets.to_numpy(zero_copy_only=False) for chunk in chunks]
        self._values = [chunk.values.to_numpy(zero_copy_only=False) for chunk in chunks]

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
        return [self.nats(int(place)) for place in places]

    def nats(self, row: int) -> np.ndarray:
        chunk = int(np.searchsorted(self._ends, row, side="right"))
        offsets = self._offsets[chunk]
        local = row - (int(self._ends[chunk]) - len(offsets) + 1)
        found: np.ndarray = self._values[chunk][offsets[local] : offsets[local + 1]]
        return found

    def distinct(self) -> np.ndarray:
        """Rows in their order, the first of each key."""
        _, first = np.unique(self._sorted, return_index=True)
        return np.sort(self._order[first])


def bytes_of(keys: pa.StringArray) -> np.ndarray:
    """Keys as [n] S32, a view of them where each has that length."""
    found = fixed_keys(keys)
    return np.array(keys.to_pylist(), dtype=f"S{KEY_LENGTH}") if found is None else found


def keys_of(table: pa.Table) -> np.ndarray:
    """Keys of all rows of a shard: [n] S32."""
    return np.concatenate([np.zeros(0, f"S{KEY_LENGTH}"), *map(bytes_of, table["row_key"].chunks)])


def read_cache(folder: Path) -> tuple[pa.Table, list[tuple[str, str]]]:
    """All rows of the shards that verify, and (name, problem) of each that does not."""
    found, damaged = read_shards(folder, {})
    return pa.concat_tables([LOGPROBS.empty_table(), *(table for _, table in found.values())]), damaged


def read_shards(
    folder: Path, known: Mapping[str, tuple[ShardRecord, pa.Table]]
) -> tuple[dict[str, tuple[ShardRecord, pa.Table]], list[tuple[str, str]]]:
    """Record and rows of the shards that verify, by name, and (name, problem) of each that does not.

    known: shards that were verified before; they are not read again where their record is the same.
    """
    found, damaged = dict[str, tuple[ShardRecord, pa.Table]](), []
    for name in shard_names(folder):
        try:
            record = read_record(folder, name)
            is_known = name in known and known[name][0] == record
            found[name] = known[name] if is_known else (record, read_verified(folder, record))
        except IntegrityError as error:
            damaged.append((name, str(error)))
    return found, damaged


def shard_names(folder: Path) -> Iterator[str]:
    """Names of all shards that have a commit record, valid or not."""
    yield from sorted(path.stem for path in (folder / "shards").glob("*.json") if not path.name.startswith("."))


def read_verified(folder: Path, record: ShardRecord) -> pa.Table:
    """Rows of a shard. Raises IntegrityError."""
    path = folder / "shards" / record.name
    table = read_shard(path, record, LOGPROBS)
    lists = table["token_nats"].combine_chunks()
    values = lists.values.to_numpy(zero_copy_only=False)
    if not (np.isfinite(values).all() and (values <= 0).all()):
        raise IntegrityError(f"{path} holds a value that is not a log-probability (finite and at most 0)")
    if not np.array_equal(np.diff(lists.offsets.to_numpy()), table["num_tokens"].to_numpy()):
        raise IntegrityError(f"{path} holds rows whose length is not their num_tokens")
    return table


def read_record(folder: Path, name: str) -> ShardRecord:
    """The commit record of shard `name`. Raises IntegrityError."""
    path = folder / "shards" / f"{name}.json"
    try:
        body = read_object(path)
        digest = body.pop("digest")
        record = ShardRecord(**body)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"the commit record {path} cannot be read ({type(error).__name__})") from error
    if digest != digest_of(body):
        raise IntegrityError(f"the commit record {path} is damaged: its digest does not fit its content")
    if record.name != hashed_name(path.stem, record.sha256):
        raise IntegrityError(f"the commit record {path} is that of another shard: it names {record.name}")
    return record


def recorded_files(folder: Path) -> set[str]:
    """File names of all shards whose commit record is whole."""
    files = set()
    for name in shard_names(folder):
        with suppress(IntegrityError):
            files.add(read_record(folder, name).name)
    return files


def read_identity(folder: Path) -> CacheIdentity:
    """The identity of a cache folder. Raises IntegrityError when it is damaged or another folder's."""
    path = folder / IDENTITY
    try:
        identity = CacheIdentity(**read_object(path))
    except (OSError, ValueError, TypeError) as error:
        raise IntegrityError(f"{path} cannot be read ({type(error).__name__})") from error
    if identity.digest != folder.resolve().name:
        raise IntegrityError(f"{path} is damaged: its digest is not the name of its folder")
    return identity


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


def open_reference(path: str | Path) -> pa.Table:
    """Reference log-probs as a table of row_key, token_nats (float32 nats of each answer token in the loss), num_tokens.

    path: a cache folder, a run directory, or a cache directory that holds exactly one cache. Raises UserError when it is
    none of these, IntegrityError naming the file when a shard is damaged.
    """
    folder = _cache_folder(local_path(str(path)))
    pull_cache(folder)
    table, damaged = read_cache(folder)
    if damaged:
        raise IntegrityError("; ".join(problem for _, problem in damaged))
    return table.take(pa.array(KeyIndex([table]).distinct()))


def _cache_folder(path: Path) -> Path:
    if (path / IDENTITY).is_file():
        return path
    if (path / "reference.json").is_file():
        return _follow(path / "reference.json")
    caches = sorted(found.parent for found in path.glob(f"*/{IDENTITY}"))
    if len(caches) == 1:
        return caches[0]
    there = f"{len(caches)} caches: {', '.join(cache.name for cache in caches)}" if caches else "no cache"
    raise UserError(
        f"{path} holds {there}; a cache folder (with {IDENTITY}), a run directory (with reference.json) or a cache directory "
        "with exactly one cache is allowed. Nothing was read. Name one of them."
    )


def _follow(pointer: Path) -> Path:
    try:
        folder = local_path(str(read_object(pointer)["cache"]))
        pull_cache(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{pointer} names no cache ({type(error).__name__}). Run raydpo precompute again.") from error
    if not (folder / IDENTITY).is_file():
        raise UserError(
            f"{pointer} names the cache {folder}, which is not there; it was moved or removed. Nothing was read. Run raydpo "
            "precompute again: it scores its rows anew."
        )
    return folder
