"""Files, folders and hub data sets as a stream of rows, each with its place; a line that is no row says why.

What comes in: the strings of data.train and data.eval. What goes out: `Source` objects whose `rows()` never raises
for one bad line; only a file that cannot be read any further raises DataError.
Decision: lines end at byte 0x0A and nowhere else (JSON strings may hold other line breaks), and are decoded one by
one. Price: about a third slower than a columnar JSON reader, which would lose the whole file for one bad line.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydpo.data.bad_rows import BadRow
from raydpo.data.cells import DELIMITERS, cell_rows
from raydpo.data.columns_read import TooLarge, batches_of
from raydpo.data.file_bytes import (
    DAMAGE,
    MOST_LINE_BYTES,
    TOO_MANY,
    LongLine,
    Truncated,
    byte_lines,
    chunks,
    most_rows,
    unreadable,
)
from raydpo.data.file_signs import check_beginning
from raydpo.data.json_list import list_items
from raydpo.schema.json_text import is_deeper

_ROWS_PER_BATCH = 1024
_SAMPLE_CHARS = 200
_MOST_DEPTH = 100
_NO_VALUE = (ValueError, OverflowError, LookupError, TypeError, AttributeError, NotImplementedError)
"""What a cell raises that Python has no value for: text that is not UTF-8, a date beyond the year 9999, an unknown zone."""
_TEXT_ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv"}


@dataclass(frozen=True)
class Line:
    """One line or row of a source: a parsed object, or the reason why there is none.

    number: counted from 1.
    row: the object, None if there is none.
    bad: the reason, None if there is an object.
    raw: bytes of a line of a text file, the beginning alone of one without an object; None for other rows.
    size: bytes of a row without `raw`, about.
    """

    number: int
    row: dict[str, Any] | None
    bad: BadRow | None
    raw: bytes | None = None
    size: int = 0

    @property
    def num_bytes(self) -> int:
        """What it holds, about."""
        return self.size or len(self.raw or b"")

    def sample(self) -> str:
        """The beginning of the line, printable, for a person who looks for it."""
        if self.raw is not None:
            return self.raw[: 4 * _SAMPLE_CHARS].decode("utf-8", "backslashreplace")[:_SAMPLE_CHARS]
        return json.dumps(self.row, default=repr)[:_SAMPLE_CHARS] if self.row is not None else ""


def file_rows(path: Path) -> Iterator[Line]:
    """Rows of one file, by its ending."""
    kind = kind_of(path)
    if kind in ("parquet", "arrow"):
        return _columnar(batches_of(path, kind))
    if kind == "json":
        return _json_rows(path)
    if kind in DELIMITERS:
        return (_cells_line(*found) for found in cell_rows(path, DELIMITERS[kind]))
    return _json_lines(path)


def _cells_line(number: int, row: dict[str, Any] | None, bad: BadRow | None) -> Line:
    return Line(number, row, bad, size=sum(len(cell or "") for cell in (row or {}).values()))


def kind_of(path: Path) -> str | None:
    """jsonl, json, csv, tsv, parquet or arrow; None when the ending says nothing."""
    name = path.name.lower()
    for packed in (".gz", ".zst"):
        if name.endswith(packed):
            plain = name.removesuffix(packed)
            return _TEXT_ENDINGS.get(Path(plain).suffix)
    return {**_TEXT_ENDINGS, ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow"}.get(path.suffix.lower())


def dataset_rows(dataset: Any, name: str) -> Iterator[Line]:
    """Rows of a `datasets.Dataset`."""
    for start in range(0, len(dataset), _ROWS_PER_BATCH):
        batch = dataset.with_format("arrow")[start : start + _ROWS_PER_BATCH]
        yield from _table_rows(batch, start + 1)


# --- lines of JSON ---------------------------------------------------------------------------------------------


def parse_line(number: int, raw: bytes) -> Line:
    """One line of JSONL. Never raises."""
    if isinstance(raw, LongLine):
        return Line(number, None, BadRow("too_large", f"the line has more than {MOST_LINE_BYTES:,} bytes"), raw)
    try:
        return Line(number, _parse(raw.removeprefix(b"\xef\xbb\xbf")), None, raw)
    except BadRow as bad:
        return Line(number, None, bad, raw[: 4 * _SAMPLE_CHARS])


def _json_lines(path: Path) -> Iterator[Line]:
    check_beginning(path)
    for number, raw in enumerate(byte_lines(path), start=1):
        yield parse_line(number, raw)


def _parse(raw: bytes) -> dict[str, Any]:
    if not raw.strip():
        raise BadRow("blank_line", "nothing but white space")
    if b"\0" in raw:
        raise BadRow("nul", f"a NUL byte at byte {raw.index(0)} of the line")
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        raise BadRow("invalid_utf8", f"byte {error.start} of the line: {error.reason}") from error
    except RecursionError as error:
        raise BadRow("malformed_json", "nested too deeply") from error
    except ValueError as error:
        raise BadRow("malformed_json", str(error)[:200]) from error
    if not isinstance(value, dict):
        raise BadRow("not_an_object", f"the line is {type(value).__name__}, not an object")
    if raw.count(b"{") + raw.count(b"[") > _MOST_DEPTH and is_deeper(value, _MOST_DEPTH):
        raise BadRow("malformed_json", "nested too deeply")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = Counter(name for name, _ in pairs)
        twice = next(name for name in names if names[name] > 1)
        raise BadRow("duplicate_key", f"{twice[:40]!r} is there twice")
    return found


def _json_rows(path: Path) -> Iterator[Line]:
    """A .json file: one list of rows, or lines of JSON under that name."""
    try:
        is_list = next(chunks(path), b"").removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    except DAMAGE as error:
        unreadable(path, "at its beginning", error)
    if not is_list:
        yield from _json_lines(path)
        return
    number, most = 0, most_rows(path)
    try:
        for number, (row, size) in enumerate(list_items(chunks(path), MOST_LINE_BYTES), start=1):
            if number > most:
                raise Truncated(TOO_MANY)
            yield _item_line(number, row, size)
    except (*DAMAGE, ValueError) as error:
        unreadable(path, f"after item {number} of the JSON list that it holds", error)


def _item_line(number: int, row: Any, size: int) -> Line:
    if is_deeper(row, _MOST_DEPTH):
        return Line(number, None, BadRow("malformed_json", "nested too deeply"), b"")
    if isinstance(row, dict):
        return Line(number, row, None, size=size)
    bad = BadRow("not_an_object", f"the item is {type(row).__name__}, not an object")
    return Line(number, None, bad, json.dumps(row)[:_SAMPLE_CHARS].encode())


# --- columns ---------------------------------------------------------------------------------------------------


def _columnar(batches: Iterator[Any]) -> Iterator[Line]:
    done = 0
    for batch in batches:
        if isinstance(batch, TooLarge):
            done += 1
            yield Line(done, None, _too_large(batch.num_bytes))
            continue
        yield from _table_rows(batch, done + 1)
        done += batch.num_rows


def _too_large(num_bytes: int) -> BadRow:
    return BadRow("too_large", f"{num_bytes:,} bytes; up to {MOST_LINE_BYTES:,} are read")


def _table_rows(table: Any, first: int) -> Iterator[Line]:
    """Rows of a table or batch; one by one where a value cannot be turned into Python (text that is not UTF-8)."""
    size = table.nbytes // max(1, table.num_rows)
    try:
        for number, row in enumerate(table.to_pylist(), start=first):
            yield Line(number, _without_filling(row), None, size=size)
        return
    except _NO_VALUE:
        pass
    for index in range(table.num_rows):
        try:
            yield Line(first + index, _without_filling(table.slice(index, 1).to_pylist()[0]), None)
        except UnicodeDecodeError as error:
            yield Line(first + index, None, BadRow("invalid_utf8", f"a field of the row: {error.reason}"))
        except _NO_VALUE as error:
            yield Line(first + index, None, BadRow("not_a_value", (str(error) or repr(error))[:200]))


def _without_filling(row: dict[str, Any]) -> dict[str, Any]:
    """`row` without the nulls that a schema puts where an object inside it lacks a field of another row's."""
    return {name: _without_nulls(value) for name, value in row.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
