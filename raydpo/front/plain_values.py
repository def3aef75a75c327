"""Rows of any library as plain values: text, numbers, booleans, lists and mappings, as JSON has them.

Comes in: one row at a time. Goes out: the same row with its columns in order of their names and nothing where it says nothing;
or problems, each with row and column, said all at once.
Decision: an absent value, None and, in a column of a frame, NaN are one thing, so that a list of dicts and a frame of the same
rows are the same data. A NaN anywhere else is refused: nobody knows what it means.
"""

from __future__ import annotations

import datetime
import decimal
import math
import uuid
from collections import Counter
from collections.abc import Mapping
from typing import Any

from raydpo.errors import DataError

_MOST_SHOWN = 10
_MOST_DEPTH = 64
_AS_TEXT = (datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, uuid.UUID)
_ALLOWED = "allowed: text, numbers, true or false, lists and mappings of these, None"


class _Refused(Exception):
    """A value that no file of rows holds; the sentence says which and why."""


class RowCleaner:
    """Makes rows plain and keeps what is wrong with them. name: of the data in messages.

    nan_is_missing: a NaN in a column stands for no value, as pandas means it.
    """

    def __init__(self, name: str, *, nan_is_missing: bool = False) -> None:
        self._name, self._nan_is_missing = name, nan_is_missing
        self._shown: list[str] = []
        self._counts: Counter[str] = Counter()
        self._number = 0

    def clean(self, row: Any) -> dict[str, Any] | None:
        """The next row as plain values, None for one that cannot be used."""
        self._number += 1
        if not isinstance(row, Mapping):
            self._add("", f"is of type {type(row).__name__}; allowed: a mapping of column names to values")
            return None
        found: dict[str, Any] = {}
        before = self._counts.total()
        for column, value in row.items():
            if not isinstance(column, str):
                self._add("", f"has a column named {column!r} ({type(column).__name__}); allowed: names that are text")
            elif not (_is_missing(value) and (value is None or self._nan_is_missing or not isinstance(value, float))):
                try:
                    found[column] = _plain(value, _MOST_DEPTH)
                except _Refused as error:
                    self._add(column, str(error))
        return dict(sorted(found.items())) if self._counts.total() == before else None

    def _add(self, column: str, text: str) -> None:
        self._counts[column] += 1
        if len(self._shown) < _MOST_SHOWN:
            where = f"row {self._number}, column {column!r}" if column else f"row {self._number}"
            self._shown.append(f"{self._name}: {where} {text}.")

    def check(self) -> int:
        """Number of rows so far. Raises DataError with what is wrong with them, or when there are none."""
        if total := self._counts.total():
            more = total - len(self._shown)
            left_out = [f"{self._name}: {more:,} more of the same kinds are not shown."] if more else []
            raise DataError([*self._shown, *left_out, f"{self._name}: nothing was written. Correct the rows."])
        if not self._number:
            raise DataError(
                f"{self._name}: no rows; at least one is needed. An iterator gives its rows once: make it anew."
            )
        return self._number


def _is_missing(value: Any) -> bool:
    """None, a NaN, and what pandas writes for one."""
    return (
        value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value)
    )


def without_nulls(value: Any) -> Any:
    """`value` without the keys of mappings that hold None, at any depth: what a reader of Arrow leaves of it."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _plain(value: Any, depth: int) -> Any:
    if depth == 0:
        raise _Refused(f"is nested more than {_MOST_DEPTH} levels deep")
    if isinstance(value, Mapping):
        if odd := [key for key in value if not isinstance(key, str)]:
            raise _Refused(f"holds a mapping with the key {odd[0]!r}; allowed: keys that are text")
        return {key: _plain(inner, depth - 1) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [_plain(inner, depth - 1) for inner in value]
    if hasattr(value, "tolist") and hasattr(value, "dtype"):  # arrays and scalars of numpy
        return _plain(value.tolist(), depth - 1) if getattr(value, "ndim", 0) else _scalar(value.tolist())
    return _scalar(value)


def _scalar(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _Refused(f"holds text that is not Unicode ({value[:40]!r}); it cannot be written as UTF-8") from None
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _Refused(f"is {value!r}; allowed: a finite number, or None where there is no value")
        return float(value)
    if isinstance(value, bytes | bytearray | memoryview):
        raise _Refused(f"holds {len(value):,} bytes; {_ALLOWED}. Decode text; images are not trained on")
    if isinstance(value, _AS_TEXT):
        return str(value)
    raise _Refused(f"holds a {type(value).__name__}; {_ALLOWED}")
