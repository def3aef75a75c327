"""Checkpoints of a run directory, from the driver's side: commit what ranks staged, keep the newest and the best.

Decision: a folder counts once its manifest (files, sizes, hashes) is in it and it has its final name; anything else is
swept away by the next attempt.
"""

from __future__ import annotations

import math
import shutil
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from raydpo.artifacts import commit_folder, discard, newest_valid, read_commit, verify_folder
from raydpo.artifacts.elsewhere import take_over
from raydpo.artifacts.folders import REMOVED
from raydpo.errors import IntegrityError
from raydpo.metrics import best_direction
from raydpo.rundir.resume import Checkpoint
from raydpo.schema.rank_events import Staged

PREFIX = "step-"


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose bytes verify, and a line for each damaged one that was passed over."""
    found, skipped = newest_valid(folder, prefix=PREFIX)
    return (None if found is None else Checkpoint(found, read_commit(found)["meta"])), skipped


def commit_checkpoint(parts: Sequence[Staged], folder: Path, meta: Mapping[str, Any]) -> Checkpoint:
    """Make a checkpoint count whose parts are there. Its manifest carries step, metrics, reason and `meta`."""
    staged = parts[0]
    final = folder / f"{PREFIX}{staged.step:06d}"
    hashed = {name: each for part in parts for name, each in part.files.items()}
    full = {**meta, "step": staged.step, "metrics": dict(staged.metrics), "reason": staged.reason}
    for part in parts:
        take_over(Path(part.folder), part.handed)
    commit_folder(Path(staged.folder), final, full, replace=True, hashed=hashed)  # replaces a damaged one
    return Checkpoint(final, full)


def best_checkpoint(checkpoints: list[Checkpoint], metric: str) -> Checkpoint | None:
    """The best of those that were evaluated at their step; the earliest of equals."""
    return next(iter(_best_first(checkpoints, metric)), None)


def best_valid(folder: Path, metric: str) -> tuple[Checkpoint | None, list[str]]:
    """The best checkpoint whose bytes verify, and a line for each better one that was passed over."""
    skipped: list[str] = []
    for checkpoint in _best_first(committed(folder), metric):
        problems = verify_folder(checkpoint.folder)
        if not problems:
            return checkpoint, skipped
        skipped.append(f"{checkpoint.folder.name}: {problems[0]}")
    return None, skipped


def _best_first(checkpoints: list[Checkpoint], metric: str) -> list[Checkpoint]:
    sign = -1 if best_direction(metric) == "higher" else 1
    rated = [c for c in checkpoints if math.isfinite(c.meta["metrics"].get(metric, math.nan))]
    return sorted(rated, key=lambda c: (sign * c.meta["metrics"][metric], c.step))


def committed(folder: Path) -> list[Checkpoint]:
    """Every committed checkpoint, oldest first. Bytes are not verified, manifests are."""
    checkpoints = []
    for path in folder.glob(f"{PREFIX}*"):
        with suppress(IntegrityError):  # a damaged manifest: the folder does not count
            checkpoints.append(Checkpoint(path, read_commit(path)["meta"]))
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.step)


def committed_said(folder: Path) -> str:
    """Which step is safe, as a sentence. Reads manifests alone."""
    return step_said(next(reversed(committed(folder)), None))


def step_said(last: Checkpoint | None) -> str:
    """The same of the newest checkpoint."""
    if last is None:
        return "No step was committed yet."
    alone = last.holds_weights_alone and not last.reason
    what = " Its weights alone (train.save: weights), so a run of it starts over." if alone else ""
    return f"Step {last.step} is committed.{what}"


def set_damaged_aside(folder: Path, newest: Checkpoint) -> None:
    """Move what is above `newest`, the newest that verifies, to `damaged/`: it must not be counted or called the best."""
    for path in sorted(folder.glob(f"{PREFIX}*")):
        number = path.name.removeprefix(PREFIX)
        if number.isdecimal() and int(number) > newest.step:
            aside = folder / "damaged" / f"{path.name}-{uuid.uuid4().hex[:6]}"
            aside.parent.mkdir(exist_ok=True)
            path.rename(aside)


def retain(folder: Path, keep: int, metric: str) -> None:
    """Delete all but the newest `keep` checkpoints and the best one."""
    checkpoints = committed(folder)
    best = best_checkpoint(checkpoints, metric)
    for checkpoint in checkpoints[:-keep]:
        if best is None or checkpoint.folder != best.folder:
            discard(checkpoint.folder)


def retain_newest(folder: Path) -> None:
    """Delete all but the newest checkpoint, and what is left of those that were being deleted when a driver died."""
    for checkpoint in committed(folder)[:-1]:
        discard(checkpoint.folder)
    for leftover in folder.glob(f"{REMOVED}*"):
        shutil.rmtree(leftover, ignore_errors=True)
