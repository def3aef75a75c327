"""Rows of CSV and TSV files: all columns are text, an empty cell is a missing value.

Decision: quoting is that of spreadsheets and pandas (quotes doubled, line breaks inside quotes), and a row with more or
fewer cells than the header is left out. Price: numbers, lists and messages are text that whoever needs them parses.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raydpo.data.bad_rows import BadRow
from raydpo.data.file_bytes import DAMAGE, MOST_LINE_BYTES, LongLine, byte_lines, chunks, unreadable
from raydpo.data.file_signs import check_encoding
from raydpo.errors import DataError

DELIMITERS = {"csv": ",", "tsv": "\t"}
"""What separates the cells, by the kind of a file."""


def cell_rows(path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, Any] | None, BadRow | None]]:
    """(number from 1 without the header, row or None, why there is none). Raises DataError for a file without a header."""
    csv.field_size_limit(MOST_LINE_BYTES)
    number = 0
    try:
        check_encoding(path, next(chunks(path), b"")[:64])
        rows = csv.reader(_lines(path), delimiter=delimiter, strict=True)
        header = next(rows, None)
        if not header or len(set(header)) < len(header) or "" in header:
            raise DataError(
                f"{path}: the first line, {str(header)[:160]}, is no header: each column needs a name of its own, and the rows "
                "could not have been told apart. Write the names of the columns as the first line."
            )
        for number, cells in enumerate(rows, start=1):
            yield number, *_row(header, cells)
    except (csv.Error, *DAMAGE) as error:
        unreadable(path, f"after row {number}", error)


def _lines(path: Path) -> Iterator[str]:
    for number, line in enumerate(byte_lines(path)):
        if isinstance(line, LongLine):
            raise csv.Error(f"a line of more than {MOST_LINE_BYTES:,} bytes")
        yield (line.removeprefix(b"\xef\xbb\xbf") if not number else line).decode("utf-8", "surrogateescape") + "\n"


def _row(header: list[str], cells: list[str]) -> tuple[dict[str, Any] | None, BadRow | None]:
    if not any(cells):
        return None, BadRow("blank_line", "no cell of the row holds anything")
    if len(cells) != len(header):
        return None, BadRow("malformed_csv", f"{len(cells)} cells, and the header names {len(header)} columns")
    try:
        "".join(cells).encode("utf-8")
    except UnicodeEncodeError:
        return None, BadRow("invalid_utf8", "a cell holds bytes that are not UTF-8")
    return {name: cell or None for name, cell in zip(header, cells, strict=True)}, None
