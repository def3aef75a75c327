"""Arrow IPC *file* shards: written whole with their hash, read whole with it.

Decision: the file form (with a footer), never the stream form, because a stream that was cut reads as a shorter table.
Neither form notices a flipped byte, so the hash of the whole file is kept next to it and checked before parsing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from raydpo.artifacts.durable import write_bytes
from raydpo.artifacts.placeholder import fetch
from raydpo.errors import IntegrityError
from raydpo.schema.rows import KEY_LENGTH


@dataclass(frozen=True)
class ShardRecord:
    """What was committed about one shard file.

    name: of the file.
    rows, bytes: how many it holds.
    sha256: of the whole file.
    """

    name: str
    rows: int
    bytes: int
    sha256: str


def write_shard(path: Path, table: pa.Table, *, add_hash: bool = False) -> ShardRecord:
    """Write `table` durably to `path`; with `add_hash` to `hashed_name` next to it, which no other content can take."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    data = sink.getvalue().to_pybytes()
    sha256 = hashlib.sha256(data).hexdigest()
    path = path.with_name(hashed_name(path.stem, sha256)) if add_hash else path
    write_bytes(path, data)
    return ShardRecord(path.name, table.num_rows, len(data), sha256)


def hashed_name(stem: str, sha256: str) -> str:
    """File name of a shard that carries the start of its hash."""
    return f"{stem}-{sha256[:12]}.arrow"


def read_shard(path: Path, record: ShardRecord, *schemas: pa.Schema, is_mapped: bool = True) -> pa.Table:
    """Memory-map `path`, or read it into memory, check it against `record` and parse it; it has one of `schemas`.

    Raises IntegrityError naming file and fault.
    """
    buffer = _buffer(path, is_mapped)
    if len(buffer) != record.bytes:
        raise IntegrityError(f"{path} has {len(buffer)} bytes, {record.bytes} were committed")
    if hashlib.sha256(buffer).hexdigest() != record.sha256:
        raise IntegrityError(f"{path} differs from what was committed (sha256)")
    table = _parsed(path, buffer, schemas)
    if table.num_rows != record.rows:
        raise IntegrityError(f"{path} holds {table.num_rows} rows, {record.rows} were committed")
    return table


def read_hashed(path: Path, *schemas: pa.Schema) -> pa.Table:
    """As `read_shard` for a file under its `hashed_name`, of which nothing else is known: the hash in its name is compared."""
    buffer = _buffer(path, is_mapped=True)
    if not is_hash_of(path.name, hashlib.sha256(buffer).hexdigest()):
        raise IntegrityError(f"{path} differs from what was written to it (sha256)")
    return _parsed(path, buffer, schemas)


def is_hash_of(name: str, sha256: str) -> bool:
    """Whether a `hashed_name` carries the start of this hash."""
    return name.endswith(f"-{sha256[:12]}.arrow")


def _buffer(path: Path, is_mapped: bool) -> pa.Buffer:
    fetch(path)
    try:
        with pa.memory_map(str(path)) if is_mapped else pa.OSFile(str(path)) as source:
            return source.read_buffer()
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read: {error}") from error


def _parsed(path: Path, buffer: pa.Buffer, schemas: tuple[pa.Schema, ...]) -> pa.Table:
    try:
        table = pa.ipc.open_file(buffer).read_all()
    except pa.ArrowException as error:  # some of them are a ValueError, too, and would be taken for another problem
        raise IntegrityError(f"{path} is as it was committed and cannot be read as Arrow: {error}") from error
    if not any(map(table.schema.equals, schemas)):
        raise IntegrityError(f"{path} holds {table.num_rows} rows of another layout than was committed")
    return table


def fixed_keys(keys: pa.StringArray) -> np.ndarray | None:
    """Row keys as [n] S32, a view of them; None where one has another length."""
    if not len(keys):
        return np.zeros(0, f"S{KEY_LENGTH}")
    _, ends, text = keys.buffers()
    offsets = np.frombuffer(ends, np.int32)[keys.offset : keys.offset + len(keys) + 1]
    if not (np.diff(offsets) == KEY_LENGTH).all():
        return None
    return np.frombuffer(text, f"S{KEY_LENGTH}", count=len(keys), offset=int(offsets[0]))
