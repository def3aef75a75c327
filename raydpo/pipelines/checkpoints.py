"""Checkpoints of a run directory, from the driver's side: commit what ranks staged, keep the newest and the best.

Decision: a folder counts once its manifest (files, sizes, hashes) is in it and it has its final name; anything else is
swept away by the next attempt.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raydpo.artifacts import commit_folder, newest_valid, read_commit
from raydpo.config import Config
from raydpo.metrics import best_direction
from raydpo.pipelines.plan import Checkpoint
from raydpo.schema.training import Staged

PREFIX = "step-"


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose bytes verify, and a line for each damaged one that was passed over."""
    found, skipped = newest_valid(folder, prefix=PREFIX)
    return (None if found is None else Checkpoint(found, read_commit(found)["meta"])), skipped


def commit_checkpoint(staged: Staged, folder: Path, meta: Mapping[str, Any]) -> Checkpoint:
    """Make a staged checkpoint count. Its manifest carries step, metrics, reason and `meta`."""
    final = folder / f"{PREFIX}{staged.step:06d}"
    if final.exists():  # a damaged one of the same step, which the plan passed over
        shutil.rmtree(final)
    full = {**meta, "step": staged.step, "metrics": dict(staged.metrics), "reason": staged.reason}
    commit_folder(Path(staged.folder), final, full)
    return Checkpoint(final, full)


def best_metric(config: Config, num_answers: int) -> str:
    """The metric that names the best checkpoint."""
    return config.train.best_metric or ("eval/rewards/margins" if num_answers == 2 else "eval/loss")


def best_checkpoint(checkpoints: list[Checkpoint], metric: str) -> Checkpoint | None:
    """The best of those that were evaluated at their step; the earliest of equals."""
    sign = 1 if best_direction(metric) == "higher" else -1
    rated = [c for c in checkpoints if metric in c.meta["metrics"]]
    return max(rated, key=lambda c: (sign * c.meta["metrics"][metric], -c.step), default=None)


def committed(folder: Path) -> list[Checkpoint]:
    """Every committed checkpoint, oldest first. Bytes are not verified."""
    paths = sorted(path for path in folder.glob(f"{PREFIX}*") if (path / "COMMIT.json").is_file())
    return [Checkpoint(path, read_commit(path)["meta"]) for path in paths]


def retain(folder: Path, keep: int, metric: str) -> None:
    """Delete all but the newest `keep` checkpoints and the best one."""
    checkpoints = committed(folder)
    best = best_checkpoint(checkpoints, metric)
    for checkpoint in checkpoints[:-keep]:
        if best is None or checkpoint.folder != best.folder:
            (checkpoint.folder / "COMMIT.json").unlink()  # from here on it does not count, even if we are killed
            shutil.rmtree(checkpoint.folder)
