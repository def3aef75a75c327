"""What a run directory says of its run, as values: the summary, the metrics by step, and single held-out pairs.

Comes in: a run directory. Goes out: `RunFacts`. Decision: files alone are read, no model and no config class, so that a report
can be made of a run of any version, on any machine; what a file does not say is None, and the page says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from raydpo.artifacts.examples import ExampleTable
from raydpo.artifacts.kept_pairs import read_kept
from raydpo.errors import ConfigError
from raydpo.metrics.sinks import metric_lines


@dataclass(frozen=True)
class PairNats:
    """A held-out pair whose log-probs by token were kept.

    example: place in the split. source: entry of the data that it is of.
    prompt: ids. answers: ids of chosen and rejected; all tokens, with and without loss.
    policy, reference: of each answer, float32 nats of the tokens in the loss, [T]; reference None without one.
    """

    example: int
    source: str
    prompt: Sequence[int]
    answers: Sequence[Sequence[int]]
    policy: Sequence[np.ndarray]
    reference: Sequence[np.ndarray] | None

    @property
    def log_ratios(self) -> tuple[float, float]:
        """Nats by which chosen and rejected became likelier than under the reference; without one, their log-probs."""
        sums = [float(nats.astype(np.float64).sum()) for nats in self.policy]
        if self.reference is not None:
            sums = [
                ours - float(nats.astype(np.float64).sum()) for ours, nats in zip(sums, self.reference, strict=True)
            ]
        return sums[0], sums[1]

    @property
    def margin(self) -> float:
        chosen, rejected = self.log_ratios
        return chosen - rejected

    @property
    def length_difference(self) -> int:
        """Tokens of the chosen answer less those of the rejected one."""
        return len(self.answers[0]) - len(self.answers[1])


@dataclass(frozen=True)
class RunFacts:
    """dir: of the run. config: as it was written down. summary: as at its end; empty while it has none. metrics: lines of
    metrics.jsonl, in order."""

    dir: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.dir.name or str(self.dir)

    @property
    def objective(self) -> str:
        found = self.config.get("objective", {})
        return str(found.get("name", "dpo")) if isinstance(found, Mapping) else str(found)

    @property
    def start(self) -> str:
        """Model that the run started from; empty where its files do not say."""
        return str(self.config.get("model", {}).get("path", ""))

    @property
    def rounds(self) -> Sequence[Mapping[str, Any]]:
        """Of a run of rounds, what its summary says of each."""
        found = self.summary.get("rounds", [])
        return found if isinstance(found, list) else []

    @property
    def evaluations(self) -> tuple[Mapping[str, float], Mapping[str, float]]:
        """(first, last) held-out metrics, without their "eval/"; empty without any."""
        found = self.summary.get("eval") or {}
        both = [{_short(name): value for name, value in (found.get(key) or {}).items()} for key in ("first", "last")]
        return both[0], both[1]

    @property
    def num_held_out(self) -> int:
        return int((self.summary.get("data") or {}).get("eval_pairs", 0))

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """(steps, values) of a metric."""
        found = [(line["step"], line[name]) for line in self.metrics if isinstance(line.get(name), int | float)]
        return [step for step, _ in found], [float(value) for _, value in found]

    @cached_property
    def pairs(self) -> list[PairNats]:
        """Held-out pairs that were kept; none of runs on single answers."""
        kept = read_kept(self.dir)
        if kept is None or not (self.dir / "data").is_dir():
            return []
        table = ExampleTable.open(self.dir / "data", "eval")
        rows: dict[int, list[Mapping[str, Any]]] = {}
        for row in kept[1].to_pylist():
            rows.setdefault(row["example"], []).append(row)
        return [_pair(table, number, both) for number, both in rows.items() if len(both) == 2 and number < len(table)]


def _pair(table: ExampleTable, number: int, rows: Sequence[Mapping[str, Any]]) -> PairNats:
    policy, reference = (
        [np.asarray(row[name], np.float32) for row in rows] for name in ("policy_nats", "reference_nats")
    )
    return PairNats(
        number,
        table.source(number).rpartition(":")[0] or table.source(number),
        table.prompt_ids(number).tolist(),
        [ids.tolist() for ids in table.answer_ids(number)],
        policy,
        reference if all(len(nats) for nats in reference) else None,
    )


def _short(name: str) -> str:
    return name.removeprefix("eval/")


def read_run(folder: Path) -> RunFacts:
    """Raises ConfigError where `folder` is no run directory."""
    if not (folder / "config.yaml").is_file() and not (folder / "summary.json").is_file():
        raise ConfigError(
            f"{folder} is no run directory: it holds neither config.yaml nor summary.json. Nothing was written. Name the "
            "run.dir of a run."
        )
    config = folder / "config.yaml"
    if not config.is_file():  # of rounds: that of the first training
        config = folder / "rounds/000/train/config.yaml"
    summary, metrics = _json(folder / "summary.json"), metric_lines(folder / "metrics.jsonl")
    return RunFacts(folder, _yaml(config), summary, metrics)


def _yaml(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
