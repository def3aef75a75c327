"""The door `objective.name`: an objective of the table, or one of another package that declares itself.

In: a name. Out: its row, which says what data, reference and options it has. An outside objective is a frozen dataclass
on `raydpo.objectives.Objective` whose `row` is made by `declares` and whose fields are made by `parameter`.
Decision: the declaration stands at the outside class, so it cannot disagree with it; ours stands in the table, so that
nothing imports torch for it. Price: a config with an outside objective imports that module, and torch with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from raydpo.config.objective_row import ObjectiveRow, Parameter
from raydpo.config.objective_table import OBJECTIVES
from raydpo.config.outside import Door, is_outside
from raydpo.errors import ConfigError

_DATA, _READS, _BATCH = ("pairs", "labels", "answers"), ("sums", "lengths", "tokens"), ("none", "answers", "mismatched")


def declares(
    title: str,
    *,
    needs_reference: bool = True,
    data: Literal["pairs", "labels", "answers"] = "pairs",
    reads: Literal["sums", "lengths", "tokens"] = "sums",
    batch: Literal["none", "answers", "mismatched"] = "none",
    paper: str = "",
    reading: str = "",
) -> Any:
    """The `row` of an outside objective; the words mean what they mean in `ObjectiveRow`."""
    found = ObjectiveRow(
        "", title, paper=paper, reading=reading, needs_reference=needs_reference, reads=reads, data=data, batch=batch
    )
    for key, given, allowed in (("data", data, _DATA), ("reads", reads, _READS), ("batch", batch, _BATCH)):
        if given not in allowed:
            raise ValueError(f"{key}: {given!r} is not one of {', '.join(allowed)}")
    return found


def parameter(
    default: float, low: float, high: float, help: str, *, low_open: bool = False, high_open: bool = False
) -> Any:
    """A field of an outside objective with its bounds; an open bound excludes the bound itself."""
    declared = Parameter(default, low, high, help, low_open=low_open, high_open=high_open)
    if (problem := declared.problem(default)) is not None:
        raise ValueError(f"the default {problem}")
    return dataclasses.field(default=declared.default, metadata={"parameter": declared})


def _undeclared(found: Any) -> str | None:
    """What an outside class lacks to be an objective."""
    if not isinstance(row := found.row, ObjectiveRow):
        return f"has a row of type {type(row).__name__}; allowed: row = declares(title, ...)"
    if not dataclasses.is_dataclass(found):
        return "is no dataclass; write @dataclass(frozen=True) above it"
    if plain := [each.name for each in dataclasses.fields(found) if "parameter" not in each.metadata]:
        return (
            f"has fields without bounds: {', '.join(plain)}; allowed: name: float = parameter(default, low, high, help)"
        )
    if (unit := getattr(found, "unit", None)) not in ("examples", "tokens"):
        return f"has unit {unit!r}; allowed: examples, tokens"
    if row.batch != "none" and not (hasattr(found, "observe") and hasattr(found, "num_values")):
        return f"looks at the whole batch (batch: {row.batch}) and has no observe and num_values"
    return None


DOOR = Door(
    "objective.name",
    dict.fromkeys(sorted(OBJECTIVES), ""),
    is_kind="a class",
    has=("row", "unit", "__call__"),
    trial=_undeclared,
    say="Name a dataclass on raydpo.objectives.Objective with row = declares(title, ...).",
    lost="there would have been no loss",
    reader="trains or starts a run",
)


def row_of(name: str) -> ObjectiveRow:
    """The row of the objective `name`. KeyError: not in the table. Raises ConfigError for an outside name that leads to no
    objective."""
    if not is_outside(name):
        return OBJECTIVES[name]
    found = class_of(name)
    declared = {each.name: each.metadata["parameter"] for each in dataclasses.fields(found)}
    row: ObjectiveRow = dataclasses.replace(found.row, name=name, parameters=declared)
    return row


def rows_of(names: Sequence[str]) -> list[ObjectiveRow]:
    """The rows of `names`; of none, the whole table. Raises ConfigError with everything that is wrong with them."""
    rows: list[ObjectiveRow] = []
    problems: list[str] = []
    for name in names:
        try:
            rows.append(row_of(name))
        except ConfigError as error:
            problems += error.problems
        except KeyError:
            problems.append(f"{DOOR.key}: {name!r} is not an objective; allowed: {', '.join(DOOR.allowed())}.")
    if problems:
        raise ConfigError(problems)
    return rows if names else list(OBJECTIVES.values())


def class_of(name: str) -> Any:
    """The class of an outside objective, None for one of the table. Raises ConfigError with what is wrong with the name."""
    return DOOR.resolve(name) if is_outside(name) else None


def metrics_of(names: Iterable[str]) -> list[str]:
    """Metrics that outside objectives among `names` have in addition to those that are declared for everybody."""
    outside = [(name, class_of(name)) for name in names if is_outside(name)]
    return [metric for name, found in outside for metric in (f"loss/{name}", *getattr(found, "metrics", ()))]
