"""What stages tell the driver while they run: small frozen values, picklable, printed by `screen` or ignored.

Decision: a stage never prints. It yields or reports one of these, and the driver decides what a person sees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from raydpo.redaction import redacted


@dataclass(frozen=True)
class StageStarted:
    """A stage begins.

    stage: its name.
    total: units of work that are expected (0: nothing to do, None: unknown).
    unit: what is counted.
    """

    stage: str
    total: int | None
    unit: str


@dataclass(frozen=True)
class Advanced:
    """Progress of a stage.

    stage: its name.
    done: units that are finished, counted from its start.
    metrics: the latest values, if any.
    """

    stage: str
    done: int
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StageDone:
    """A stage is over. `text` says in one line what came out; secrets of the environment are taken out of it."""

    stage: str
    text: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", redacted(self.text))


@dataclass(frozen=True)
class Note:
    """One line for the person who watches; secrets of the environment are taken out of it."""

    level: Literal["info", "warning"]
    text: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", redacted(self.text))


@dataclass(frozen=True)
class Evaluated:
    """The held-out split was evaluated.

    step: optimizer steps before it.
    metrics: all of them, named "eval/...": rewards and margins in the unit of the objective, losses in nats.
    """

    step: int
    metrics: Mapping[str, float]


Event = StageStarted | Advanced | StageDone | Note | Evaluated
Observer = Callable[[Event], None]
"""A callback for the events of a run, called in the driver's process."""


def ignore(event: Event) -> None:
    """The callback that shows nothing: the default of the Python API."""
