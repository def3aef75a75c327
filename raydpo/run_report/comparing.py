"""Several runs beside each other: what differs between them, what they measured, and what each gain cost in movement.

Comes in: runs. Goes out: rows and charts. Decision: settings that are the same everywhere, and places of files, are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from raydpo.metrics.intervals import wilson
from raydpo.run_report import charts
from raydpo.run_report.charts import Series
from raydpo.run_report.run_facts import RunFacts

_MARKS = "abcdef"
_NOT_SETTINGS = ("run.dir", "reference.cache_dir")
_MEASURED = (
    "rewards/accuracies",
    "rewards/margins",
    "loss",
    "log_ratios/chosen",
    "log_ratios/rejected",
    "log_ratios/abs",
)


def differing(runs: Sequence[RunFacts]) -> list[tuple[str, list[str]]]:
    """(key, value of each run) of every setting that is not the same in all."""
    flat = [dict(_flat(run.config, "")) for run in runs]
    keys = dict.fromkeys(key for each in flat for key in each)
    return [
        (key, [each.get(key, "-") for each in flat])
        for key in keys
        if key not in _NOT_SETTINGS and len({each.get(key, "-") for each in flat}) > 1
    ]


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def measured(runs: Sequence[RunFacts]) -> list[tuple[str, list[str]]]:
    """(metric, last held-out value of each run); of the share won also its interval."""
    rows = []
    for name in _MEASURED:
        values = [run.evaluations[1].get(name) for run in runs]
        if any(value is not None for value in values):
            rows.append((name, [_said(name, value, run) for value, run in zip(values, runs, strict=True)]))
    return rows


def _said(name: str, value: float | None, run: RunFacts) -> str:
    if value is None:
        return "-"
    if name != "rewards/accuracies" or not run.num_held_out:
        return f"{value:.4g}"
    low, high = wilson(value, run.num_held_out)
    return f"{value:.1%} [{low:.1%}, {high:.1%}]"


def overlaid(runs: Sequence[RunFacts]) -> Iterator[Markup | None]:
    """The curves of all runs in one chart each."""
    for title, name in (
        ("held-out share won", "eval/rewards/accuracies"),
        ("held-out loss", "eval/loss"),
        ("margin of rewards in training", "rewards/margins"),
        ("log-ratio of chosen answers in training, nats", "log_ratios/chosen"),
    ):
        drawn = [Series(run.name, *run.series(name), _MARKS[n % len(_MARKS)]) for n, run in enumerate(runs)]
        yield charts.lines(title, drawn)


def frontier(runs: Sequence[RunFacts]) -> Markup | None:
    """Held-out share won against how far the policy moved, a point for each run."""
    drawn = []
    for number, run in enumerate(runs):
        last = run.evaluations[1]
        if "rewards/accuracies" in last and "log_ratios/abs" in last:
            mark = _MARKS[number % len(_MARKS)]
            drawn.append(Series(run.name, [last["log_ratios/abs"]], [last["rewards/accuracies"]], mark))
    return (
        charts.lines("share won against movement", drawn, "mean absolute log-ratio of an answer, nats")
        if drawn
        else None
    )
