"""Optimizer state that is carried from round to round: where a round finds it, and how long it is kept.

Comes in: the folders of a run of rounds. Goes out: a checkpoint to go on with, or none. Decision: that of the newest two
saved rounds is kept, so that the newest can be made again; the price is two checkpoints. Of a round that is not saved the
trainers alone have it, and its checkpoint in memory is a name for it.
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
    checkpoints, in_memory = _checkpoints(layout, version - 1), layout.unsaved.training(version - 1)
    if in_memory is not None and not checkpoints.is_dir():
        return committed(in_memory / "checkpoints")[-1].folder
    own, _ = newest_checkpoint(_checkpoints(layout, index))
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


def has_state(layout: RoundsFolder, index: int) -> bool:
    """Whether the state that round `index` ended with is on disk, whole or not."""
    return any(checkpoint.reason for checkpoint in committed(_checkpoints(layout, index)))


def forget_state(layout: RoundsFolder, index: int) -> None:
    """Have the training of round `index` begin anew."""
    shutil.rmtree(_checkpoints(layout, index), ignore_errors=True)


def tidy(layout: RoundsFolder, index: int) -> None:
    """Remove optimizer state that nothing reads after round `index` was committed."""
    kept = 2 if layout.carries_optimizer else 0
    folders = (_checkpoints(layout, number) for number in range(index, -1, -1))
    found = [folder for folder in folders if folder.is_dir()]
    for folder in found[:kept]:
        retain_newest(folder)
    for folder in found[kept:]:
        shutil.rmtree(folder, ignore_errors=True)


def _checkpoints(layout: RoundsFolder, index: int) -> Path:
    return layout.round(index) / "train/checkpoints"
