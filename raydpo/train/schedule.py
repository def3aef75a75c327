"""Learning rate of a step: linear warm-up, then cosine, linear or no decay. A pure function: nothing to save."""

from __future__ import annotations

import math


def learning_rate(step: int, num_steps: int, *, peak: float, warmup_fraction: float, schedule: str) -> float:
    """Learning rate of optimizer step `step` (from 0) of `num_steps`.

    Warm-up takes round(warmup_fraction * num_steps) steps and its first step is already above 0. The decay reaches 0
    one step after the last, so that no step is spent at 0.
    """
    warmup = round(warmup_fraction * num_steps)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if schedule == "constant":
        return peak
    progress = (step - warmup) / max(1, num_steps - warmup)
    return peak * (1 - progress if schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2)
