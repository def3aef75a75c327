"""Results of the comparison of objectives: one entry an objective and seed, in a JSON file under version control.

In: the settings of an alignment and what came of it. Out: entries, plain dicts that the page is made from.
Decision: an entry holds the settings it was made with; the same settings are not run again, other settings replace it.
What made it (date, commit, hardware) is next to the settings and not part of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.settings import START, settings_of
from raydpo.artifacts import write_text
from raydpo.artifacts.durable import strict
from raydpo.config import OBJECTIVES
from raydpo.quickstart.offline_dpo import DPO, SFT, Aligned, Supervised

Entry = dict[str, Any]

FILE = Path(__file__).parent / "results/quickstart_by_objective.json"
KEPT = (
    "loss",
    "rewards/accuracies",
    "rewards/margins",
    "log_ratios/margins",
    "logps/chosen",
    "logps/rejected",
    "clamped",
)
"""Held-out metrics that an entry keeps, before and after."""


def read(path: Path) -> list[Entry]:
    """The entries of a results file; none when it is not there."""
    entries: list[Entry] = json.loads(path.read_text())["results"] if path.is_file() else []
    return entries


def write(path: Path, entries: list[Entry]) -> None:
    """In the order of the table of objectives, then of seeds; one entry a line, so that two changes seldom meet."""
    order = {name: place for place, name in enumerate(OBJECTIVES)}
    entries = sorted(entries, key=lambda entry: (order.get(name_of(entry), len(order)), entry["settings"]["seed"]))
    lines = ",\n".join(json.dumps(strict(entry), allow_nan=False) for entry in entries)
    write_text(path, f'{{"results": [\n{lines}\n]}}\n')


def name_of(entry: Entry) -> str:
    return str(entry["settings"]["objective"]["name"])


def wanted(name: str, seed: int) -> dict[str, Any]:
    """What decides the numbers of an entry: the objective at its defaults, with what `benchmarks.settings` says."""
    defaults = {key: parameter.default for key, parameter in OBJECTIVES[name].parameters.items()}
    changes = settings_of(name)
    return {
        "seed": seed,
        "objective": {"name": name, **defaults},
        **{section: dict(values) for section, values in changes.items()},
        "train": {**DPO, **changes.get("train", {})},
        "start": {**START, **SFT},
    }


def make_entry(settings: dict[str, Any], start: Supervised, end: Aligned, made: dict[str, str]) -> Entry:
    """One result, its numbers cut to what a reader can use."""
    reference, evals = end.summary["reference"], end.summary["eval"]
    return {
        "settings": settings,
        "made": made,
        "exact_match": {"before": start.exact_match, "after": end.exact_match},
        "steps": end.summary["train"]["steps"],
        "reference": {key: reference[key] for key in ("rows", "rows_scored", "forwards")},
        "eval": {when: _kept(evals[when]) for when in ("first", "last")},
    }


def replaced(entries: list[Entry], new: Entry) -> list[Entry]:
    """`entries` with `new`; an entry of the same objective made with other settings, but for the seed, is out of date."""

    def stays(old: Entry) -> bool:
        if name_of(old) != name_of(new):
            return True
        same = {**old["settings"], "seed": 0} == {**new["settings"], "seed": 0}
        return same and old["settings"]["seed"] != new["settings"]["seed"]

    return [old for old in entries if stays(old)] + [new]


def _kept(metrics: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{metrics[f'eval/{name}']:.6g}") for name in KEPT if f"eval/{name}" in metrics}
