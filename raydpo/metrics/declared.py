"""Every metric, declared once: unit, denominator, direction. A name that is not here cannot be logged.

Decision: values travel as (sum, count) until one division on the driver's side of the all-reduce, so a mean is never a
mean of means. Names are those that users of TRL know. Rewards are beta x log-ratio, of the answer or, where the
objective takes means, of its mean token; without a reference they are its scale x log-prob. `log_ratios/margins` knows
no beta and no mean, so it compares runs of different objectives.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from raydpo.config import OBJECTIVES
from raydpo.config.objective_door import metrics_of


@dataclass(frozen=True)
class Metric:
    """A number that may be logged.

    name: as in metrics.jsonl.
    unit: what is measured.
    per: the denominator.
    better: the direction that a best checkpoint follows, if it has one.
    """

    name: str
    unit: str
    per: str
    better: Literal["higher", "lower"] | None = None


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("loss", "the objective's own, most in nats", "pair, or answer token for sft", "lower"),
        Metric("rewards/chosen", "beta x nats", "pair", "higher"),
        Metric("rewards/rejected", "beta x nats", "pair"),
        Metric("rewards/margins", "beta x nats", "pair", "higher"),
        Metric("rewards/accuracies", "share, ties count half", "pair", "higher"),
        Metric("rewards/ties", "share", "pair"),
        Metric("logps/chosen", "nats", "answer", "higher"),
        Metric("logps/rejected", "nats", "answer"),
        Metric("log_ratios/abs", "nats", "answer"),
        Metric("log_ratios/chosen", "nats", "chosen or desirable answer", "higher"),
        Metric("log_ratios/rejected", "nats", "rejected or undesirable answer"),
        Metric("log_ratios/margins", "nats", "pair", "higher"),
        Metric("kl", "nats: KTO's reference point, an estimate of its KL from the reference", "example"),
        Metric("rewards/shift", "beta x nats: BCO's delta", "example"),
        Metric("weights", "factor of the loss, from the data and WPO; of the first term", "example"),
        *(Metric(f"loss/{name}", "the loss of one term of a sum, unweighted", "as `loss`") for name in OBJECTIVES),
        Metric("clamped", "share whose exponential or odds met a clamp", "answer"),
        Metric(
            "router_aux_loss",
            "balancing loss of the experts without its coefficient: k of top-k when even",
            "step",
        ),
        Metric("grad_norm", "norm before clipping", "step"),
        Metric("learning_rate", "1", "step"),
        Metric("tokens_per_s", "real tokens a second, all ranks", "log interval"),
        Metric("epoch", "passes over the training set", "step"),
        Metric("skipped_steps", "non-finite steps skipped so far", "run"),
    )
}


def names_for(objectives: Iterable[str]) -> list[str]:
    """Names of all metrics that a loss of these objectives may have, in the order in which ranks add them up."""
    return sorted({*METRICS, *metrics_of(objectives)})


def best_direction(name: str) -> Literal["higher", "lower"]:
    """Direction of a metric given with or without its `eval/` prefix. KeyError: not declared, or has no direction."""
    better = METRICS[name.removeprefix("eval/")].better
    if better is None:
        raise KeyError(name)
    return better


def page() -> str:
    """Every metric as a Markdown table."""
    rows = [metric for metric in METRICS.values() if not metric.name.startswith("loss/")]
    lines = [f"| `{metric.name}` | {metric.unit} | {metric.per} |\n" for metric in rows]
    return "".join([_PAGE, *lines])


_PAGE = """
## Metrics

Of the training steps as they are named here, of evaluations with `eval/` before, and with `eval/<entry>/` for each entry
where several are held out. `loss/<name>` is the loss of one term of
a sum. Where an objective has no such thing (no reference, no clamp), the metric is absent.

| Name | Unit | Mean over, or per |
|---|---|---|
"""
