"""Values that remember where each was written.

Comes in: YAML (see `source`) or plain Python. Goes out: trees of `Entry`, which the checks walk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Entry:
    """A value and where it was written.

    value: mappings hold entries; lists and scalars hold plain values.
    where: "run.yaml:3", "command line", or "" for a value of Python.
    text: a scalar as it was typed (`1e10` may be the name of a branch), None for mappings and lists.
    """

    value: Any
    where: str
    text: str | None = None

    def plain(self) -> Any:
        """The value with the places taken out."""
        if isinstance(self.value, dict):
            return {key: entry.plain() for key, entry in self.value.items()}
        return self.value


def entry_of(value: Any) -> Entry:
    """A value of Python as a tree; finished sections in it stay what they are."""
    if isinstance(value, Mapping):
        return Entry({str(key): entry_of(inner) for key, inner in value.items()}, "")
    return Entry(value, "")
