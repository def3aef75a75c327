"""Tables of a run: metrics by step, and what its last evaluation saw of each held-out pair.

Comes in: the facts that a run directory says. Goes out: a pandas DataFrame where pandas is installed, else a pyarrow Table.
Decision: both are made from the run's own files, so that a run that was opened again has what the one in memory has.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from raydpo.errors import UserError
from raydpo.run_report.run_facts import RunFacts


def framed(columns: dict[str, list[Any]]) -> Any:
    """Columns as a table of the library that is there."""
    if find_spec("pandas") is not None:
        return import_module("pandas").DataFrame(columns)
    return import_module("pyarrow").table(columns)


def metrics_frame(run: RunFacts) -> Any:
    """One row a step, an evaluation in the row of the step it came after; nothing where a metric was not measured."""
    by_step: dict[int, dict[str, Any]] = {}
    for line in run.metrics:
        by_step.setdefault(line["step"], {}).update(line)
    rows = [by_step[step] for step in sorted(by_step)]
    names = ["step", *sorted({name for row in rows for name in row} - {"step"})]
    return framed({name: [row.get(name) for row in rows] for name in names})


def margins_frame(run: RunFacts) -> Any:
    """One row a held-out pair whose log-probs were kept: example (its place in the split), source, log_ratio_chosen,
    log_ratio_rejected and margin, in nats, before beta.

    A log-ratio is of the policy and the reference, without a reference the policy's log-prob. Raises UserError where the run
    kept no pairs.
    """
    if not run.pairs:
        raise UserError(
            f"{run.dir} keeps no values of single pairs: it was not evaluated on pairs, or by a version that kept none. Give "
            "eval_data and run again in another run_dir."
        )
    ratios = [pair.log_ratios for pair in run.pairs]
    return framed(
        {
            "example": [pair.example for pair in run.pairs],
            "source": [pair.source for pair in run.pairs],
            "log_ratio_chosen": [chosen for chosen, _ in ratios],
            "log_ratio_rejected": [rejected for _, rejected in ratios],
            "margin": [pair.margin for pair in run.pairs],
        }
    )
