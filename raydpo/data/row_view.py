"""A row that remembers which of its columns were read.

Comes in: the values of a row under the names that layouts look for, and the columns of the file that each is from. Goes out:
the same values, and the set of columns that somebody asked for.
Decision: a layout declares nothing, what it reads is what it asks for; a column that it asks for and drops is its own fault,
and `peek` is for a look that is no reading.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class RowView(dict[str, Any]):
    """Values by name. origin: the columns that a value is from, where they have other names. used: columns read so far."""

    def __init__(self, values: Mapping[str, Any], origin: Mapping[str, tuple[str, ...]]) -> None:
        super().__init__(values)
        self.origin = origin
        self.used: set[str] = set()

    def mark(self, name: str) -> None:
        """Note that `name` was read."""
        self.used.update(self.origin.get(name, (name,)))

    def get(self, name: str, default: Any = None) -> Any:
        self.mark(name)
        return super().get(name, default)

    def __getitem__(self, name: str) -> Any:
        self.mark(name)
        return super().__getitem__(name)

    def __iter__(self) -> Iterator[str]:
        return super().__iter__()

    def items(self) -> Any:
        self._mark_all()
        return super().items()

    def values(self) -> Any:
        self._mark_all()
        return super().values()

    def _mark_all(self) -> None:
        for name in super().__iter__():
            self.mark(name)


def peek(row: Mapping[str, Any], name: str) -> Any:
    """The value under `name`, or None; a row that remembers does not count it as read."""
    return dict.get(row, name) if isinstance(row, dict) else row.get(name)


def is_absent(value: Any) -> bool:
    """Whether a column says nothing in a row."""
    return value is None or (isinstance(value, str | list | tuple | dict) and not value)


def dig(row: Mapping[str, Any], column: str) -> Any:
    """The value under `column`, None when there is none; dots reach into nested fields, unless the name itself has them."""
    value: Any = row
    for part in (column,) if column in row else column.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
