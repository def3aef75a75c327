"""Tables of a run: metrics by step, and what an evaluation saw of each held-out pair.

Comes in: a run directory. Goes out: a pandas DataFrame where pandas is installed, else a pyarrow Table.
Decision: both are made from the run's own files, so that a run that was opened again has what the one in memory has.
"""

from __future__ import annotations

import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from raydpo.errors import UserError

_FOLDER = "evaluation"


def framed(columns: dict[str, list[Any]]) -> Any:
    """Columns as a table of the library that is there."""
    if find_spec("pandas") is not None:
        return import_module("pandas").DataFrame(columns)
    return import_module("pyarrow").table(columns)


def metrics_frame(run_dir: Path) -> Any:
    """One row a step, an evaluation in the row of the step it came after; nothing where a metric was not measured."""
    by_step: dict[int, dict[str, Any]] = {}
    path = run_dir / "metrics.jsonl"
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue  # the half line of a killed driver
        by_step.setdefault(line["step"], {}).update(line)
    rows = [by_step[step] for step in sorted(by_step)]
    names = ["step", *sorted({name for row in rows for name in row} - {"step"})]
    return framed({name: [row.get(name) for row in rows] for name in names})


def margins_frame(run_dir: Path) -> Any:
    """One row a held-out pair: position, source ("file:line"), margin_first, margin_last and change, in nats.

    A margin is the log-ratio of policy and reference of the chosen answer less that of the rejected one, before beta; without
    a reference, that of log-probs. Raises UserError where the run kept no values of single pairs.
    """
    from raydpo.artifacts import ExampleTable

    first, last = (_margins(run_dir / _FOLDER / f"pairs-{name}.arrow") for name in ("first", "last"))
    table = ExampleTable.open(run_dir / "data", "eval")
    positions = sorted(last)
    columns: dict[str, list[Any]] = {
        "position": positions,
        "source": [table.source(position) for position in positions],
        "margin_first": [first.get(position) for position in positions],
        "margin_last": [last[position] for position in positions],
    }
    columns["change"] = [
        None if before is None else after - before
        for before, after in zip(columns["margin_first"], columns["margin_last"], strict=True)
    ]
    return framed(columns)


def _margins(path: Path) -> dict[int, float]:
    """Position in the held-out split -> margin in nats."""
    import pyarrow as pa

    if not path.is_file():
        raise UserError(
            f"{path} is not there: the run was not evaluated on pairs, or by a version that kept no values of single pairs. "
            "Give eval_data and run again in another run_dir."
        )
    with pa.memory_map(str(path)) as source:
        rows = pa.ipc.open_file(source).read_all().to_pylist()
    if any(len(row["policy_nats"]) < 2 for row in rows):
        raise UserError(f"{path} holds single answers, which have no margins; objectives on pairs have.")
    return {row["position"]: _ratio(row, 0) - _ratio(row, 1) for row in rows}


def _ratio(row: dict[str, Any], answer: int) -> float:
    reference = row["reference_nats"]
    return float(sum(row["policy_nats"][answer]) - (sum(reference[answer]) if reference else 0.0))
