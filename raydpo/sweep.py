"""A sweep: one training for each combination of some values, one after the other, on one reference cache.

Comes in: configs, loaded and checked, one a combination. Goes out: a table, the best run, and a page that compares them.
Decision: each is an ordinary run in a directory of its own, so that the same command goes on where it was, a run that is done
costs nothing, and `raydpo report` and `raydpo soup` read them like any other. Price: runs do not share the time of a cluster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydpo.config import Config
from raydpo.config.cross_checks import best_metric
from raydpo.pipelines.offline import train
from raydpo.run_report.write import write
from raydpo.schema.events import Note, Observer, ignore


@dataclass(frozen=True)
class Trial:
    """One combination. values: of the keys that are swept, as they were written. config: of its run."""

    values: Mapping[str, str]
    config: Config


def sweep(trials: Sequence[Trial], folder: Path, observer: Observer = ignore) -> dict[str, Any]:
    """Train every trial: its values, run directory and last held-out metrics, the best first; writes `comparison.html` there.

    The best is by `train.best_metric`, or by the share of held-out pairs won, since margins grow with beta. Raises what
    `train` raises; what was trained stays, and the same call goes on.
    """
    done = []
    for number, trial in enumerate(trials, start=1):
        said = ", ".join(f"{key}={value}" for key, value in trial.values.items())
        observer(Note("info", f"run {number} of {len(trials)}: {said}"))
        summary = train(trial.config, observer)
        reference = summary.get("reference") or {}
        done.append(
            {
                "values": dict(trial.values),
                "run_dir": summary["run_dir"],
                "rows_scored": reference.get("rows_scored", 0),
                "eval": (summary.get("eval") or {}).get("last") or {},
            }
        )
    metric = _metric(trials[0].config)
    falls = metric.endswith("loss")
    known = [each for each in done if metric in each["eval"]]
    order = sorted(known, key=lambda each: each["eval"][metric], reverse=not falls)
    order += [each for each in done if each not in known]
    page = write([Path(each["run_dir"]) for each in done], folder / "comparison.html")
    return {"metric": metric, "runs": order, "best": order[0] if known else None, "comparison": str(page)}


def _metric(config: Config) -> str:
    is_of_pairs = config.train.best_metric is None and config.objective.row.data == "pairs"
    return "eval/rewards/accuracies" if is_of_pairs else best_metric(config)
