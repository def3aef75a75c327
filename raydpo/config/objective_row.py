"""What one row of the table of objectives is: needs, parameters with bounds and defaults, the paper.

In: what `raydpo.config.objectives` says. Out: checked numbers and text for errors. Torch-free, like the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


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

    num_answers: answers of one example that the objective reads (2: chosen and rejected; 1: one answer). paper: arXiv
    id, empty without one. reading: what the paper says, in a line. reads: what it takes of each answer's log-probs, their
    sum, the sum and the number of tokens (lengths), or every token.
    """

    name: str
    title: str
    needs_reference: bool
    num_answers: int
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    paper: str = ""
    reading: str = ""
    reads: Literal["sums", "lengths", "tokens"] = "sums"
