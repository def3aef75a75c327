"""Looks at the metrics of a run and says what a careful person would say: three warnings, and when to stop early.

Decision: warnings look at means over windows of steps, never at one step, and each is given once. They never change
the run; only `Patience` can end it, and only when asked to.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

WINDOW = 20
FLAT_MARGIN = {"log_ratios/margins": 0.1, "rewards/margins": 0.01}
"""Margins that move less are flat. Log-ratios, in nats, are looked at where there is a reference: rewards are scaled by
beta, and some objectives have a very small one."""
RUNAWAY_NATS = 100.0


class Watch:
    """Feed it the training metrics of every step; it returns the warnings that became true."""

    def __init__(self) -> None:
        self._chosen: deque[float] = deque(maxlen=3 * WINDOW)
        self._margins: deque[float] = deque(maxlen=3 * WINDOW)
        self._ratios: deque[float] = deque(maxlen=WINDOW)
        self._kind = "rewards/margins"
        self._given: set[str] = set()

    def observe(self, metrics: Mapping[str, float]) -> list[str]:
        if "rewards/margins" not in metrics:
            return []
        self._chosen.append(metrics["rewards/chosen"])
        self._kind = "log_ratios/margins" if "log_ratios/margins" in metrics else "rewards/margins"
        self._margins.append(metrics[self._kind])
        if (ratio := metrics.get("log_ratios/abs")) is not None:  # there is none without a reference
            self._ratios.append(ratio)
        checks = {"falling": self._falling, "flat": self._flat, "runaway": self._runaway}
        found = {name: text for name, check in checks.items() if name not in self._given and (text := check())}
        self._given |= set(found)
        return list(found.values())

    def _falling(self) -> str | None:
        if len(self._chosen) < self._chosen.maxlen:  # type: ignore[operator]
            return None
        first, middle, last = _thirds(self._chosen)
        if not (first > middle > last and first - last > 1.0):
            return None
        return (
            f"log-probs of the chosen answers fall steadily (rewards/chosen {first:.2f} -> {middle:.2f} -> {last:.2f} over "
            f"{len(self._chosen)} steps): the margin grows by unlearning both answers. Lower train.learning_rate"
            f"{' or raise objective.beta' if self._ratios else ''}."
        )

    def _flat(self) -> str | None:
        if len(self._margins) < self._margins.maxlen:  # type: ignore[operator]
            return None
        first, _, last = _thirds(self._margins)
        flat = FLAT_MARGIN[self._kind]
        if abs(last - first) > flat or last > 10 * flat:
            return None
        return (
            f"margins stay flat ({self._kind} {first:.4f} -> {last:.4f} over {len(self._margins)} steps): the data move "
            "nothing. Raise train.learning_rate, or look whether the chosen and rejected columns are what they say."
        )

    def _runaway(self) -> str | None:
        if len(self._ratios) < WINDOW:
            return None
        mean = sum(self._ratios) / len(self._ratios)
        if mean <= RUNAWAY_NATS:
            return None
        return (
            f"|log-ratio| runs away (mean {mean:.0f} nats an answer over {WINDOW} steps): the policy has left its reference. "
            "Lower train.learning_rate, raise objective.beta, or train fewer epochs."
        )


def _thirds(values: deque[float]) -> tuple[float, float, float]:
    size = len(values) // 3
    items = list(values)
    a, b, c = items[:size], items[size : 2 * size], items[2 * size :]
    return sum(a) / len(a), sum(b) / len(b), sum(c) / len(c)


class Patience:
    """Early stopping: True once `patience` evaluations in a row brought no better `rewards/margins`."""

    def __init__(self, patience: int | None, history: list[float] | None = None) -> None:
        self.patience = patience
        self.history = list(history or [])

    def exhausted(self, margin: float) -> bool:
        self.history.append(margin)
        if self.patience is None or len(self.history) <= self.patience:
            return False
        return max(self.history[-self.patience :]) <= max(self.history[: -self.patience])
