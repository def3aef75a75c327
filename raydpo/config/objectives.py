"""The table of objectives: names, needs, parameters with bounds and defaults. Torch-free, written once.

The config check, the command line and the documentation read this table; `raydpo.objectives` implements exactly
its names (tests/objectives/test_table.py). To add an objective: a row here, a file there, golden values in its test.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Parameter:
    """A number that an objective reads. `low` and `high` bound it; an open bound excludes the bound itself."""

    default: float
    low: float
    high: float
    help: str
    low_open: bool = False
    high_open: bool = False

    def problem(self, value: Any) -> str | None:
        """Why `value` is not allowed, or None."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"{value!r} is not a number; {self.bounds()}"
        low_ok = value > self.low if self.low_open else value >= self.low
        high_ok = value < self.high if self.high_open else value <= self.high
        return None if low_ok and high_ok else f"{value!r} is out of range; {self.bounds()}"

    def bounds(self) -> str:
        """The allowed range in interval notation."""
        return f"allowed: {'(' if self.low_open else '['}{self.low:g}, {self.high:g}{')' if self.high_open else ']'}"


@dataclass(frozen=True)
class ObjectiveRow:
    """What the rest of the program must know about an objective before it loads torch.

    num_answers: answers of one example that the objective reads (2: chosen and rejected; 1: one answer).
    """

    name: str
    title: str
    needs_reference: bool
    num_answers: int
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


_BETA = Parameter(0.1, 0.0, 1e4, "strength of the pull to the reference, in 1/nats", low_open=True)
_SMOOTHING = Parameter(0.0, 0.0, 0.5, "probability that a label is flipped (cDPO)", high_open=True)

OBJECTIVES: dict[str, ObjectiveRow] = {
    row.name: row
    for row in (
        ObjectiveRow("dpo", "DPO, sigmoid", True, 2, {"beta": _BETA, "label_smoothing": _SMOOTHING}),
        ObjectiveRow("sft", "next-token likelihood of the chosen answer", False, 1),
    )
}


def check_objective(value: Any) -> dict[str, Any]:
    """Validate `{name, **parameters}` and fill in defaults. Raises ValueError naming what is allowed."""
    given = {"name": value} if isinstance(value, str) else dict(getattr(value, "__dict__", None) or value or {})
    name = given.pop("name", "dpo")
    row = OBJECTIVES.get(name) if isinstance(name, str) else None
    if row is None:
        near = difflib.get_close_matches(str(name), OBJECTIVES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"name: {name!r} is not an objective; allowed: {', '.join(sorted(OBJECTIVES))}{hint}")
    problems = []
    for key, number in given.items():
        if key not in row.parameters:
            readers = [other.name for other in OBJECTIVES.values() if key in other.parameters]
            who = f"objectives that read it: {', '.join(readers)}" if readers else "no objective reads it"
            problems.append(f"{key}: objective {name} does not read {key}; {who}")
        elif (problem := row.parameters[key].problem(number)) is not None:
            problems.append(f"{key}: {problem}")
    if problems:
        raise ValueError("; ".join(problems))
    return {"name": name, **{key: float(given.get(key, p.default)) for key, p in row.parameters.items()}}
