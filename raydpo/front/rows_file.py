"""Rows in memory as a file that is named by their content: the same rows are the same file, whatever held them.

Comes in: rows, once, in order. Goes out: the path of an Arrow file, or of lines of JSON where no Arrow schema says all of them
exactly (a number here and text there, other orders of keys in nested mappings: templates print them in order).
Decision: rows go through lines of JSON on disk first, so that an iterator of any length needs the memory of a batch. The
price: they are read twice more. Arrow is read back and compared before it gets its name.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from raydpo.artifacts.durable import write_with
from raydpo.disk import full_disk
from raydpo.front.plain_values import RowCleaner, without_nulls

_ROWS_PER_BATCH = 1024
_NAME_LENGTH = 32


class _NotExact(Exception):
    """Arrow would hold other rows than these."""


def keep_rows(rows: Iterable[Any], folder: Path, cleaner: RowCleaner) -> Path:
    """Write `rows` into `folder` unless they are there. Raises DataError with everything that `cleaner` refuses."""
    with full_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        staging = folder / f".tmp-{uuid.uuid4().hex[:12]}.jsonl"
        try:
            digest = _write_lines(rows, staging, cleaner)
            arrow, lines = (folder / f"{digest}.{ending}" for ending in ("arrow", "jsonl"))
            for path in (arrow, lines):
                if path.is_file():
                    return path
            try:
                write_with(arrow, lambda fresh: _write_arrow(staging, fresh), staging.stat().st_size)
                return arrow
            except _NotExact:
                write_with(lines, partial(_moved, staging))
                return lines
        finally:
            with suppress(OSError):
                staging.unlink(missing_ok=True)


def _moved(staging: Path, fresh: Path) -> None:
    staging.replace(fresh)


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _write_lines(rows: Iterable[Any], path: Path, cleaner: RowCleaner) -> str:
    """Digest of the rows, 32 hex digits."""
    digest = hashlib.sha256(b"raydpo-rows-1\n")
    with path.open("wb") as file:
        for row in rows:
            if (plain := cleaner.clean(row)) is not None:
                line = _line(plain)
                digest.update(line)
                file.write(line)
    cleaner.check()
    return digest.hexdigest()[:_NAME_LENGTH]


def _batches(path: Path) -> Iterator[list[dict[str, Any]]]:
    with path.open("rb") as file:
        while lines := list(islice(file, _ROWS_PER_BATCH)):
            yield [json.loads(line) for line in lines]


def _write_arrow(lines: Path, fresh: Path) -> None:
    """Raises _NotExact where what is read back would not be what was given."""
    import pyarrow as pa

    try:
        schema = pa.unify_schemas([_columns(batch).schema for batch in _batches(lines)], promote_options="permissive")
        with pa.OSFile(str(fresh), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for batch in _batches(lines):
                table = _columns(batch, schema)
                back = [without_nulls(row) for row in table.to_pylist()]
                if list(map(_line, back)) != list(map(_line, batch)):
                    raise _NotExact
                writer.write_table(table)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        raise _NotExact from error


def _columns(rows: list[dict[str, Any]], schema: Any = None) -> Any:
    import pyarrow as pa

    names = schema.names if schema is not None else sorted({name for row in rows for name in row})
    types = schema.types if schema is not None else [None] * len(names)
    return pa.table(
        {name: pa.array([row.get(name) for row in rows], kind) for name, kind in zip(names, types, strict=True)}
    )
