"""Learning rate of a step: linear warm-up, then a schedule. Pure functions: nothing to save.

A schedule is a function of the steps after the warm-up. Decision: the warm-up is everybody's, so that
`train.warmup_fraction` means the same whatever comes after it.
"""

from __future__ import annotations

import math
from typing import Protocol

from raydpo.config.doors import SCHEDULES
from raydpo.config.outside import calling
from raydpo.errors import ConfigError


class Schedule(Protocol):
    """The door `train.schedule`."""

    def __call__(self, step: int, num_steps: int) -> float:
        """Share of the peak learning rate at step `step` (from 0) of the `num_steps` after the warm-up: finite, >= 0."""


def cosine(step: int, num_steps: int) -> float:
    """Half a cosine down to 0, one step after the last."""
    return (1 + math.cos(math.pi * (step / num_steps))) / 2


def cosine_to_tenth(step: int, num_steps: int) -> float:
    """Half a cosine down to a tenth of the peak, one step after the last."""
    return 0.1 + 0.9 * cosine(step, num_steps)


def linear(step: int, num_steps: int) -> float:
    """A straight line down to 0, one step after the last."""
    return 1 - step / num_steps


def constant(step: int, num_steps: int) -> float:
    """No decay."""
    return 1.0


def learning_rate(step: int, num_steps: int, *, peak: float, warmup_fraction: float, schedule: str) -> float:
    """Learning rate of optimizer step `step` (from 0) of `num_steps`. schedule: a name as in `train.schedule`.

    Warm-up takes round(warmup_fraction * num_steps) steps and its first step is already above 0. The decay of ours reaches
    0 one step after the last, so that no step is spent at 0. Raises ConfigError for a schedule that gives no number.
    """
    warmup = round(warmup_fraction * num_steps)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    after, num_after = step - warmup, max(1, num_steps - warmup)
    found: Schedule = SCHEDULES.resolve(schedule)
    with calling(SCHEDULES.key, schedule):
        share = float(found(after, num_after))
    if not (math.isfinite(share) and share >= 0):
        raise ConfigError(
            f"train.schedule: {schedule} gave {share!r} for step {after} of {num_after}; a share of the peak rate is finite "
            "and at least 0. The step was not made. Fix the function."
        )
    return peak * share
