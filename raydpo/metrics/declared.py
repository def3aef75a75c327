"""Every metric, declared once: unit, denominator, direction. A name that is not here cannot be logged.

Decision: values travel as (sum, count) until one division on the driver's side of the all-reduce, so a mean is never a
mean of means. Names are those that users of TRL know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """`per` is the denominator; `better` the direction that a best checkpoint follows, if it has one."""

    name: str
    unit: str
    per: str
    better: Literal["higher", "lower"] | None = None


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("loss", "nats", "pair, or answer token for sft", "lower"),
        Metric("rewards/chosen", "beta x nats", "pair", "higher"),
        Metric("rewards/rejected", "beta x nats", "pair"),
        Metric("rewards/margins", "beta x nats", "pair", "higher"),
        Metric("rewards/accuracies", "share, ties count half", "pair", "higher"),
        Metric("rewards/ties", "share", "pair"),
        Metric("logps/chosen", "nats", "answer", "higher"),
        Metric("logps/rejected", "nats", "answer"),
        Metric("log_ratios/abs", "nats", "answer"),
        Metric("grad_norm", "norm before clipping", "step"),
        Metric("learning_rate", "1", "step"),
        Metric("tokens_per_s", "real tokens a second, all ranks", "log interval"),
        Metric("epoch", "passes over the training set", "step"),
        Metric("skipped_steps", "non-finite steps skipped so far", "run"),
    )
}


def best_direction(name: str) -> Literal["higher", "lower"]:
    """Direction of a metric given with or without its `eval/` prefix. KeyError: not declared, or has no direction."""
    better = METRICS[name.removeprefix("eval/")].better
    if better is None:
        raise KeyError(name)
    return better
