"""A program of its own: reads Arrow and Parquet files in a process that may die, and sends rows that were validated.

In (stdin): a frame with the name of a file. Out (stdout): frames of an Arrow stream with a piece of the file each, then one
that says how many rows there were or what is wrong. It ends with its stdin, and by itself when nothing is asked for as many
seconds as its argument says (0: it waits).
Decision: it imports pyarrow and nothing of this package, so that it costs a fifth of a second and little memory, and is bounded
in memory and CPU time by the size of the file: a few bytes may ask for gigabytes. Price: each piece is copied once.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, BinaryIO

FRAME = struct.Struct("<cQ")
"""A letter and the number of bytes that follow. R: read this file (kind, a NUL, its name). B: rows. L: one row with too many
bytes, and how many. D: done, number of rows. E: what is wrong."""

IDLE_S = 5.0
ROWS_PER_PIECE = 1024
_MOST_DEPTH = 64
_MOST_COLUMNS = 10_000
_PIECE_BYTES = 32 << 20
_ELEMENT_BYTES = 16
_MEMORY_BYTES, _MEMORY_TIMES = 384 << 20, 16
_CPU_S, _BYTES_PER_CPU_S = 8, 1 << 20
_FREE_ROWS, _ROWS_PER_BYTE = 100_000, 2


class Wrong(Exception):
    """The file cannot be used; the sentence says why."""


def main() -> None:
    """Answer requests until stdin ends."""
    import pyarrow as pa
    import pyarrow.compute

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    asked, answers, idle_s = sys.stdin.buffer, os.fdopen(os.dup(1), "wb"), float(sys.argv[1]) or None
    os.dup2(2, 1)  # nothing that a library prints gets between the frames
    while select.select([asked], [], [], idle_s)[0] and len(head := asked.read(FRAME.size)) == FRAME.size:
        kind, _, name = asked.read(FRAME.unpack(head)[1]).partition(b"\0")
        most, _, name = name.partition(b"\0")
        try:
            num_rows = _answer(kind.decode(), name, int(most), answers)
            _send(answers, b"D", str(num_rows).encode())
        except MemoryError:
            _send(answers, b"E", f"reading it takes more memory than {_limit_bytes(name):,} bytes".encode())
        except Exception as error:  # noqa: BLE001  whatever it is, it is said and this process may go on
            text = str(error) if isinstance(error, Wrong) else (str(error) or repr(error))
            _send(answers, b"E", text.encode("utf-8", "backslashreplace"))


def _answer(kind: str, name: bytes, most_bytes: int, answers: BinaryIO) -> int:
    size = os.path.getsize(name)
    _limit(size, name)
    done = 0
    for batch in _parquet(name) if kind == "parquet" else _arrow(name):
        _check_schema(batch.schema)
        _validate(batch)
        done += batch.num_rows
        _check_rows(done, size)
        for start in range(0, batch.num_rows, ROWS_PER_PIECE):
            _pieces(_plain(batch.slice(start, ROWS_PER_PIECE)), most_bytes, answers)
    return done


def _check_rows(num_rows: int, size: int) -> None:
    if num_rows > _FREE_ROWS + _ROWS_PER_BYTE * size:
        raise Wrong(f"it claims more than {_ROWS_PER_BYTE} rows to each of its {size:,} bytes")


def _limit_bytes(name: bytes) -> int:
    return _MEMORY_BYTES + _MEMORY_TIMES * os.path.getsize(name)


def _limit(size: int, name: bytes) -> None:
    """Bound this process anew: memory above what it has now, CPU time above what it has used."""
    with open("/proc/self/statm", "rb") if os.path.exists("/proc/self/statm") else open(os.devnull, "rb") as file:
        pages = file.read().split()
    if pages:
        data = int(pages[5]) * resource.getpagesize() + _limit_bytes(name)
        resource.setrlimit(resource.RLIMIT_DATA, (data, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + _CPU_S + size // _BYTES_PER_CPU_S
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _send(answers: BinaryIO, letter: bytes, payload: Any) -> None:
    answers.write(FRAME.pack(letter, len(payload)))
    answers.write(payload)
    answers.flush()


# --- the two forms ---------------------------------------------------------------------------------------------


def _parquet(name: bytes) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(pa.OSFile(name), page_checksum_verification=True) as file:
        _check_schema(file.schema_arrow)
        _check_counts(file.metadata, os.path.getsize(name))
        done = 0
        for batch in file.iter_batches(batch_size=ROWS_PER_PIECE, use_threads=False):
            done += batch.num_rows
            yield batch
        if done != file.metadata.num_rows:
            raise Wrong(f"its footer promises {file.metadata.num_rows:,} rows, and there are {done:,}")


def _check_counts(metadata: Any, size: int) -> None:
    """Refuse a footer that contradicts itself: rows would be missing without a word."""
    _check_rows(metadata.num_rows, size)
    total = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        total += group.num_rows
        for index in range(group.num_columns):
            is_flat = metadata.schema.column(index).max_repetition_level == 0
            values = group.column(index).num_values
            if values < group.num_rows or (is_flat and values != group.num_rows):
                raise Wrong(
                    f"row group {number} promises {group.num_rows:,} rows, and a column holds {values:,} values"
                )
    if total != metadata.num_rows:
        raise Wrong(f"its footer promises {metadata.num_rows:,} rows, and its row groups {total:,}")
    unlisted = size - metadata.serialized_size - 12
    if not metadata.num_row_groups and unlisted > 0:
        raise Wrong(f"its footer lists no rows, and {unlisted:,} bytes of data lie before it")


def _arrow(name: bytes) -> Iterator[Any]:
    import pyarrow as pa

    with pa.memory_map(name) as stream:
        beginning = stream.read(6)
        stream.seek(0)
        if beginning == b"ARROW1":
            file = pa.ipc.open_file(stream)
            _check_schema(file.schema)
            for index in range(file.num_record_batches):
                yield file.get_batch(index)
            return
        stream.seek(max(0, stream.size() - 8))
        if stream.read(8) != b"\xff\xff\xff\xff\0\0\0\0":
            raise Wrong("this Arrow stream has no end mark, so rows may be missing")
        stream.seek(0)
        yield from pa.ipc.open_stream(stream)


# --- what a batch has to be ------------------------------------------------------------------------------------


def _check_schema(schema: Any) -> None:
    if len(schema) > _MOST_COLUMNS:
        raise Wrong(f"it has {len(schema):,} columns; up to {_MOST_COLUMNS:,} are read")
    for field in schema:
        level, depth = [field.type], 0
        while level:
            depth += 1
            if depth > _MOST_DEPTH:
                raise Wrong(f"column {field.name[:40]!r} is nested more than {_MOST_DEPTH} deep")
            level = [type.field(index).type for type in level for index in range(type.num_fields)][:_MOST_COLUMNS]


def _validate(batch: Any) -> None:
    """Refuse offsets and indices that point outside. Text is validated as bytes: one that is not UTF-8 spoils its row alone."""
    import pyarrow as pa

    batch.validate()
    for column in batch.columns:
        storage = column.storage if isinstance(column, pa.ExtensionArray) else column
        as_bytes = _mapped(storage.type, _as_bytes)
        with suppress(pa.ArrowNotImplementedError, pa.ArrowTypeError):
            storage = storage.view(as_bytes) if as_bytes != storage.type else storage
        storage.validate(full=True)


def _as_bytes(type: Any) -> Any:
    import pyarrow as pa

    return {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}.get(type, type)


def _unpacked(type: Any) -> Any:
    """What a type is without dictionaries, runs and views, which hold one value for many rows."""
    import pyarrow as pa

    types = pa.types
    if isinstance(type, pa.BaseExtensionType):
        return type.storage_type
    if types.is_dictionary(type) or types.is_run_end_encoded(type):
        return type.value_type
    if types.is_list_view(type) or types.is_large_list_view(type):
        return pa.large_list(type.value_type)
    return {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}.get(type, type)


def _mapped(type: Any, change: Callable[[Any], Any]) -> Any:
    """`type` and all types in it as `change` makes them."""
    import pyarrow as pa

    types = pa.types
    while (changed := change(type)) != type:
        type = changed
    if types.is_struct(type):
        return pa.struct([_mapped_field(type.field(index), change) for index in range(type.num_fields)])
    if types.is_map(type):
        return pa.map_(_mapped(type.key_type, change), _mapped(type.item_type, change), type.keys_sorted)
    if types.is_fixed_size_list(type):
        return pa.list_(_mapped_field(type.value_field, change), type.list_size)
    if types.is_list(type) or types.is_large_list(type):
        make = pa.list_ if types.is_list(type) else pa.large_list
        return make(_mapped_field(type.value_field, change))
    return type


def _mapped_field(field: Any, change: Callable[[Any], Any]) -> Any:
    return field.with_type(_mapped(field.type, change))


def _plain(batch: Any) -> Any:
    """A batch whose bytes are those of its values: a dictionary of one long text may stand for a thousand."""
    import pyarrow as pa

    columns = []
    for column in batch.columns:
        if isinstance(column, pa.ExtensionArray):
            column = column.storage
        if pa.types.is_run_end_encoded(column.type):
            column = pa.compute.run_end_decode(column)
        wanted = _mapped(column.type, _unpacked)
        columns.append(column if wanted == column.type else column.cast(wanted))
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _pieces(batch: Any, most_bytes: int, answers: BinaryIO) -> None:
    """Send the rows in pieces of a bounded size; one row alone that is larger than `most_bytes` is named only."""
    import pyarrow as pa

    size = batch.nbytes + _ELEMENT_BYTES * sum(map(_num_elements, batch.columns))
    if batch.num_rows > 1 and size > _PIECE_BYTES:
        half = batch.num_rows // 2
        _pieces(batch.slice(0, half), most_bytes, answers)
        _pieces(batch.slice(half), most_bytes, answers)
    elif size > most_bytes:
        _send(answers, b"L", str(size).encode())
    else:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        _send(answers, b"B", sink.getvalue())


def _num_elements(array: Any) -> int:
    """Values at all depths; of nulls, too, which take no bytes."""
    import pyarrow as pa

    types, type = pa.types, array.type
    if types.is_struct(type):
        return len(array) + sum(_num_elements(array.field(index)) for index in range(type.num_fields))
    if types.is_map(type):
        return _num_elements(array.view(pa.list_(type.field(0))))
    if types.is_fixed_size_list(type) and types.is_null(type.value_type):
        return len(array) * (1 + int(type.list_size))
    if types.is_list(type) or types.is_large_list(type) or types.is_fixed_size_list(type):
        if types.is_null(type.value_type):
            inner: int = pa.compute.sum(pa.compute.list_value_length(array)).as_py() or 0
            return len(array) + inner
        return len(array) + _num_elements(array.flatten())
    return len(array)


if __name__ == "__main__":
    main()
