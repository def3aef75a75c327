"""One entry of data.train or data.eval: a path with how often, or how many of, its examples are used.

Comes in: a text, or a mapping with a path. Goes out: a `MixtureEntry`, or sentences on what is wrong with it.
Decision: an entry is checked with its section, all entries at once; in the section it stays as it was written, so that a
resolved config reads like the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from raydpo.config.entry import entry_of
from raydpo.config.section import Section, one_or_many
from raydpo.config.tree_check import TreeCheck


class MixtureEntry(Section):
    path: str = Field(min_length=1)
    """File, folder, glob or hub id."""
    name: str | None = Field(default=None, pattern=r"^[\w.-]+$")
    """Name in reports and metrics. Default: the path's own."""
    passes: float = Field(default=1, gt=0, allow_inf_nan=False)
    """How often every example is used in an epoch: 2 is twice, 2.5 twice and a third time with a chance of a half, 0.5 once
    with a chance of a half."""
    count: int | None = Field(default=None, ge=1)
    """Use at most so many examples, drawn without replacement; all where there are fewer. Drawn before `passes` repeats."""
    seed: int | None = Field(default=None, ge=0, lt=2**31)
    """Seed of what is drawn. Default: run.seed."""

    @property
    def is_drawn(self) -> bool:
        """Whether its examples are not simply used once each."""
        return self.passes != 1 or self.count is not None


Entries = Annotated[
    tuple[str | dict[str, Any], ...],
    BeforeValidator(one_or_many),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": {"anyOf": [{"type": "string"}, MixtureEntry.model_json_schema()]}},
                {"type": "string"},
            ]
        }
    ),
]
"""Texts, or mappings that `MixtureEntry` describes; one text alone may stand without its list."""


def entries_of(values: Sequence[str | dict[str, Any]]) -> list[MixtureEntry]:
    """The entries that a good section holds."""
    return [MixtureEntry(path=value) if isinstance(value, str) else MixtureEntry(**value) for value in values]


def paths_of(values: Sequence[str | dict[str, Any]]) -> list[str]:
    """The path of every entry that has one, good or not."""
    found = [value if isinstance(value, str) else value.get("path") for value in values]
    return [path for path in found if isinstance(path, str)]


def entry_problems(key: str, values: Sequence[str | dict[str, Any]]) -> Iterator[str]:
    """A sentence for everything that is wrong with the entries of `key` ("train" or "eval")."""
    names: Counter[str] = Counter()
    for number, value in enumerate(values):
        if isinstance(value, str):
            continue
        check = TreeCheck(MixtureEntry, entry_of(value), "")
        check.walk()
        entry = check.run()
        if check.problems or not isinstance(entry, MixtureEntry):
            yield from (f"{key}, entry {number}: {text.rstrip('.')}" for _, text in check.problems)
            continue
        names.update([entry.name] if entry.name is not None else [])
        if key == "eval" and entry.passes != 1:
            yield f"{key}, entry {number}: passes: {entry.passes:g}, but a held-out example counts once; use count instead"
        if entry.seed is not None and not entry.is_drawn:
            yield f"{key}, entry {number}: seed: {entry.seed} without count or passes, so nothing is drawn; leave it out"
    if twice := [name for name, number in names.items() if number > 1]:
        yield f"{key}: {', '.join(twice)} is the name of several entries, which metrics could not tell apart"
