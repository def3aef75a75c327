"""The reference cache: per-token log-probs by row key, in verified shards that many runs and workers share.

Layout: `<cache_dir>/<identity>/identity.json`, `shards/<name>.json` (the commit record: file, rows, bytes, sha256, and a
digest over itself) with `shards/<name>-<hash>.arrow`, `replaced/` for lists of shards that merged ones replaced, `damaged/` for
shards that failed their check, `index/`, `claims/`, `.readers/` and `.lock` for those who work on it at the same time.
Decision: one commit record a shard instead of one manifest for all, so that any number of runs add shards without waiting
for each other; two that write one shard with values a little different never share a file, and the last record counts. A
row that stands in two shards is harmless; a shard without a valid record does not exist.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from raydpo.artifacts.arrow import ShardRecord, write_shard
from raydpo.artifacts.cache_index import MappedIndex, write_index
from raydpo.artifacts.cache_lock import writing
from raydpo.artifacts.cache_records import read_record, recorded_files, signed
from raydpo.artifacts.cache_shards import VerifiedShard, read_shards, read_verified, set_aside, whole_table
from raydpo.artifacts.digest import digest_of
from raydpo.artifacts.durable import crash_point, write_json
from raydpo.artifacts.key_index import KeyIndex
from raydpo.artifacts.mirror_path import local_path
from raydpo.artifacts.open_readers import OpenReader
from raydpo.artifacts.remote_cache import pull_cache, push_shard
from raydpo.artifacts.replaced import replacements, write_replaced
from raydpo.errors import IntegrityError, StorageError, UserError
from raydpo.schema.json_text import read_object
from raydpo.schema.rows import LOGPROBS

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
        self._shards_open: dict[str, VerifiedShard] = {}
        self._index = KeyIndex([])
        self._reader: OpenReader | None = None

    def open(self, *, is_owner: bool = True) -> ReferenceCache:
        """Verify every shard, set damaged ones aside (they are scored again), and index the rows. Returns self.

        is_owner: False for a reader that scores nothing; it leaves damaged shards where they are.
        """
        pull_cache(self.folder)
        before, self._reader = self._reader, OpenReader(self.folder)
        merged = list(replacements(self.folder))
        self._shards_open, found = read_shards(self.folder, self._shards_open)
        self._reader.found(merged, None)
        if before is not None:
            before.close()
        for name, _ in found:
            try:  # reading the others took time: another run may have scored this one again by now
                record = read_record(self.folder, name)
                self._shards_open[name] = VerifiedShard(
                    self.folder, record, read_verified(self.folder, record), is_kept=True
                )
            except IntegrityError as error:
                if is_owner:
                    with suppress(PermissionError):  # a cache that can only be read keeps it, and nobody uses it
                        set_aside(self.folder, name)
                self.damaged.append(f"{error}; its rows will be scored again")
        self._index = KeyIndex([*self._shards_open.values()])
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
        return whole_table(self._shards_open.values()).take(pa.array(self._index.distinct()))

    def close(self) -> None:
        """Nothing has to be kept for this reader of the cache any more."""
        if self._reader is not None:
            self._reader.close()

    def shards(self) -> Mapping[str, VerifiedShard]:
        """Each shard that is open, by name."""
        return self._shards_open

    def write_index(self, *, is_due: bool = False) -> None:
        """Let readers map an index of what is open, unless one names almost all of it or there is little; is_due: then, too."""
        index = MappedIndex.newest(self.folder)
        fresh = sum(index is None or not index.names(name) for name in self._shards_open)
        if fresh > FEW_SHARDS or is_due:
            with suppress(PermissionError):  # a cache that can only be read is read shard by shard
                write_index(self.folder, {name: shard.keys() for name, shard in self._shards_open.items()})

    def write_shard(self, name: str, row_keys: Sequence[str], token_nats: Sequence[np.ndarray]) -> ShardRecord:
        """Commit one shard. Writing the same name again replaces it by the same rows: harmless."""
        with writing(self.folder):
            record = self._write_file(name, row_keys, token_nats)
            self._write_record(name, record)
        push_shard(self.folder, name, signed(asdict(record)))
        return record

    def merge_shards(
        self, name: str, row_keys: Sequence[str], token_nats: Sequence[np.ndarray], replaces: Mapping[str, str]
    ) -> ShardRecord | None:
        """Commit one shard with all rows of those that it replaces (name -> file), which count no longer. None where the store
        of the cache holds a shard that replaced one of them already; nothing was changed then."""
        with writing(self.folder):
            record = self._write_file(name, row_keys, token_nats)
            crash_point("merge:before-commit")
            if not push_shard(self.folder, name, signed(asdict(record)), replaces):
                return None
            write_replaced(self.folder, name, record.name, replaces)
            self._write_record(name, record)
        crash_point("merge:after-commit")
        return record

    def _write_file(self, name: str, row_keys: Sequence[str], token_nats: Sequence[np.ndarray]) -> ShardRecord:
        if not (self.folder / IDENTITY).is_file():
            write_json(self.folder / IDENTITY, asdict(self.identity))
        return write_shard(self._shards / f"{name}.arrow", _table_of(row_keys, token_nats), add_hash=True)

    def _write_record(self, name: str, record: ShardRecord) -> None:
        crash_point("shard:before-record")
        try:
            write_json(self._shards / f"{name}.json", signed(asdict(record)))
        except StorageError:
            if record.name not in recorded_files(self.folder):  # it may be another run's, too
                (self._shards / record.name).unlink(missing_ok=True)
            raise
        crash_point("shard:after-record")

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


def _table_of(row_keys: Sequence[str], token_nats: Sequence[np.ndarray]) -> pa.Table:
    """Rows in the schema `LOGPROBS`."""
    nats = [np.asarray(values, dtype=np.float32) for values in token_nats]
    lengths = [len(values) for values in nats]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    flat = pa.array(np.concatenate(nats) if nats else np.zeros(0, np.float32))
    columns = [pa.array(row_keys, pa.string()), pa.ListArray.from_arrays(offsets, flat), pa.array(lengths, pa.int32())]
    return pa.Table.from_arrays(columns, schema=LOGPROBS)


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


def open_reference(path: str | Path) -> pa.Table:
    """Reference log-probs as a table of row_key, token_nats (float32 nats of each answer token in the loss), num_tokens.

    path: a cache folder, a run directory, or a cache directory that holds exactly one cache. Raises UserError when it is
    none of these, IntegrityError naming the file when a shard is damaged.
    """
    folder = _cache_folder(local_path(str(path)))
    pull_cache(folder)
    found, damaged = read_shards(folder, {})
    if damaged:
        raise IntegrityError("; ".join(problem for _, problem in damaged))
    return whole_table(found.values()).take(pa.array(KeyIndex([*found.values()]).distinct()))


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
