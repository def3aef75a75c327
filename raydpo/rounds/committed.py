"""What of a run of rounds is committed, as a sentence for somebody who ended it.

Comes in: the folders of the run. Goes out: a sentence. Decision: it is read from the disk, so that it is true at any moment,
in the middle of a training or of a sampling, and in either thread. Files are looked at, and none is verified.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from raydpo.artifacts.durable import COMMIT
from raydpo.rundir.checkpoints import committed
from raydpo.rundir.rounds_folder import RoundsFolder


def committed_said(layout: RoundsFolder) -> str:
    """Rounds that are over, and what there is of those in work."""
    number = layout.rounds.num_rounds
    over = sum((layout.round(index) / "summary" / COMMIT).is_file() for index in range(number))
    ahead = layout.rounds.max_staleness if layout.is_ahead else 0
    in_work = {f"round {index}": layout.round(index) for index in range(over, min(over + 1 + ahead, number))}
    places = {"the evaluation before them": layout.evaluation(0)} if not over else {}
    found = {place: list(_there(folder)) for place, folder in {**places, **in_work}.items()}
    said = (f"of {place} {', '.join(names)}" for place, names in found.items() if names)
    return f"Committed: {'; '.join([f'{over} of {number} rounds', *said])}."


def _there(folder: Path) -> Iterator[str]:
    """Pieces below a folder of a round or of an evaluation, whole ones and parts; those of pairs are made anew."""
    for name in ("prompts", "generations", "scores", "pairs", "sampled", "metrics"):
        yield from _of_piece(folder / name, name)
    if steps := committed(folder / "train/checkpoints"):
        yield f"step {steps[-1].step} of its training"
    if (folder / "train/model").is_dir():
        yield "its model"
    for name in ("generations", "scores", "sampled", "metrics"):
        yield from _of_piece(folder / "evaluation" / name, f"{name} of its evaluation")


def _of_piece(folder: Path, name: str) -> Iterator[str]:
    if (folder / COMMIT).is_file():
        yield name
    elif name != "pairs" and (parts := len(list(folder.with_name(f".{folder.name}-work").glob("part-*")))):
        yield f"{parts} part{'s' * (parts > 1)} of {name}"
