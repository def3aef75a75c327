"""What one row of the table of objectives is: needs, parameters with bounds and defaults, the paper.

In: what `raydpo.config.objective_table` says. Out: checked numbers and text for errors. Torch-free, like the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Parameter:
    """A number that an objective reads.

    default: its value when none is given.
    low, high: bounds.
    help: one sentence for people.
    low_open, high_open: an open bound excludes the bound itself.
    """

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

    def read(self, value: Any) -> float:
        """A value without a `problem`, as the objective gets it."""
        return float(value)

    def shown(self) -> str:
        """The default as text."""
        return f"{self.default:g}"

    def schema(self) -> dict[str, Any]:
        """JSON schema of the value."""
        return {
            "type": "number",
            "exclusiveMinimum" if self.low_open else "minimum": self.low,
            "exclusiveMaximum" if self.high_open else "maximum": self.high,
            "default": self.default,
            "description": self.help,
        }


@dataclass(frozen=True)
class Flag:
    """A switch, off unless it is set."""

    help: str
    default: bool = False

    def problem(self, value: Any) -> str | None:
        """Why `value` is not allowed, or None."""
        return None if isinstance(value, bool) else f"{value!r} is not true or false; {self.bounds()}"

    def bounds(self) -> str:
        return "allowed: true or false"

    def read(self, value: Any) -> bool:
        return bool(value)

    def shown(self) -> str:
        return str(self.default).lower()

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean", "default": self.default, "description": self.help}


@dataclass(frozen=True)
class ObjectiveRow:
    """What the rest of the program must know about an objective before it loads torch.

    name: as in the config.
    title: for people.
    needs_reference: whether it reads reference log-probs.
    num_answers: answers of one example that it reads (2: chosen and rejected; 1: one answer).
    parameters: name -> bounds and default.
    paper: arXiv id, empty without one.
    reading: what the paper says, in a line.
    reads: what it takes of each answer's log-probs: their sum (sums), the sum and the number of tokens (lengths), or
        every token (tokens).
    data: pairs, single answers with a label (labels), or single answers (answers).
    batch: what a pass without gradient over the global batch looks at before the loss: nothing (none), the answers, or
        each prompt with the answer to another one (mismatched).
    """

    name: str
    title: str
    needs_reference: bool = field(default=True, kw_only=True)
    num_answers: int = field(init=False)
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    paper: str = ""
    reading: str = ""
    _: KW_ONLY
    reads: Literal["sums", "lengths", "tokens"] = "sums"
    data: Literal["pairs", "labels", "answers"] = "pairs"
    batch: Literal["none", "answers", "mismatched"] = "none"

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_answers", 2 if self.data == "pairs" else 1)


@dataclass(frozen=True)
class Term:
    """One checked term of the loss.

    row: its objective.
    weight: its factor in the loss.
    parameters, modifiers: name -> value.
    outside: the class of an objective of another package, None for ours.
    """

    row: ObjectiveRow
    weight: float
    parameters: Mapping[str, float]
    modifiers: Mapping[str, float | bool]
    outside: Any = None

    @property
    def name(self) -> str:
        return self.row.name
