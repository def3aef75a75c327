"""Optimizer state that is carried from round to round: where a round finds it, and how long it is kept.

Comes in: the folders of a run of rounds. Goes out: a checkpoint to go on with, or none. Decision: that of the newest two
rounds is kept, so that the newest can be made again; the price is two checkpoints.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from raydpo.errors import IntegrityError
from raydpo.rundir.checkpoints import committed, newest_checkpoint, retain_newest
from raydpo.rundir.rounds_folder import RoundsFolder


def optimizer_of(layout: RoundsFolder, index: int) -> Path | None:
    """The checkpoint whose optimizer state a round goes on with; None where it starts without.

    Raises IntegrityError when it is not whole, unless the round has a checkpoint of its own and needs no more than its name.
    """
    version = layout.trained(index)
    if not layout.carries_optimizer or version == 0:
        return None
    checkpoints = layout.round(version - 1) / "train/checkpoints"
    own, _ = newest_checkpoint(layout.round(index) / "train/checkpoints")
    if own is not None and (there := committed(checkpoints)):
        return there[-1].folder
    found, damaged = newest_checkpoint(checkpoints)
    if found is None or not found.reason:
        raise IntegrityError(
            f"rounds.optimizer: carried, and {checkpoints} does not hold the state that round {version - 1} ended with"
            f"{f' (damaged: {damaged[0]})' if damaged else ''}. Round {index} would have gone on without it. Remove the "
            f"folders of round {version - 1} and of all after it, and run the same command; they are made again."
        )
    return found.folder


def tidy(layout: RoundsFolder, index: int) -> None:
    """Remove optimizer state that nothing reads after round `index` was committed."""
    kept = _kept(layout, index + 1)
    for number in {index, *_kept(layout, index)} - kept:
        shutil.rmtree(layout.round(number) / "train/checkpoints", ignore_errors=True)
    for number in kept:
        retain_newest(layout.round(number) / "train/checkpoints")


def _kept(layout: RoundsFolder, version: int) -> set[int]:
    """Rounds whose optimizer state is kept after `version` rounds: the newest two, so that the newest can be made again."""
    if not layout.carries_optimizer:
        return set()
    newest = layout.trained(version)
    return {made - 1 for made in (newest, layout.trained(max(newest - 1, 0))) if made}
