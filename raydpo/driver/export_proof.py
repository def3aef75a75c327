"""The proof of an export: the folder is loaded again as anybody would, and says what its trainers said.

Comes in: a folder that is not published yet, and the trainers' log-probs of a few rows at its step. Goes out: how far they are
apart, or an error. Decision: a worker of its own loads it, on a GPU where the run trains on one; the model must fit there
once (`train.verify_export: false` where it does not). Price: one load for each folder that is published.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raydpo import runtime
from raydpo.driver.actors import libraries_of, trainer_limits
from raydpo.errors import IntegrityError
from raydpo.models.agreement import compare, tolerance_of
from raydpo.rundir.workspace import Workspace
from raydpo.schema.events import Note, Observer
from raydpo.schema.json_text import read_object
from raydpo.schema.rank_events import PROBE_FILE
from raydpo.schema.samples import Score


@dataclass(frozen=True)
class ProofJob:
    """folder: of the export. request: rows that it scores."""

    folder: Path
    request: Score
    dtype: str
    device: str


def prove(workspace: Workspace, folder: Path, checkpoint: Path, name: str, observer: Observer) -> dict[str, float]:
    """Load the export in `folder`, which becomes `name`, and compare it with its trainers: what the summary says of it.

    Nothing where it is switched off or the checkpoint has no probe, which is said. Raises IntegrityError for another model.
    """
    train = workspace.config.train
    if not train.verify_export or not (checkpoint / PROBE_FILE).is_file():
        why = "train.verify_export is off" if not train.verify_export else f"{checkpoint} has no {PROBE_FILE}"
        observer(Note("warning", f"{name}/ is published without having been loaded again: {why}"))
        return {}
    request, theirs = read_probe(checkpoint / PROBE_FILE)
    job = ProofJob(folder, request, workspace.dtype, "cuda" if train.gpus_per_worker else "cpu")
    limits = trainer_limits(train) | {"gpus": train.gpus_per_worker, "preload": libraries_of()}
    ((_, ours),) = runtime.run_pool("verify", verifier, [job], num_workers=1, **limits)
    found = compare(ours, theirs, tolerance_of(workspace.dtype))
    if found.problem is not None:
        shutil.rmtree(folder, ignore_errors=True)
        row, now, then, difference, allowed = found.problem
        raise _other_model(
            name,
            checkpoint,
            f"sequence {row} gets {now:.6f} nats and the trainers gave {then:.6f}: they differ "
            f"by {difference:.3g}, allowed are {allowed:.3g} in {workspace.dtype}",
        )
    worst = {"rows": found.rows, "max_difference_nats": found.worst_nats, "tolerance_nats": found.allowed_nats}
    text = f"{name}/ was loaded again and says what was trained: {found.rows} rows within {found.worst_nats:.2g} nats"
    observer(Note("info", text))
    return worst


def read_probe(path: Path) -> tuple[Score, list[np.ndarray]]:
    """Sequences, and the trainers' log-probs of their answers."""
    found = read_object(path)
    request = Score(tuple((tuple(prompt), tuple(answer)) for prompt, answer in found["sequences"]))
    return request, [np.array(nats) for nats in found["nats"]]


def verifier() -> Callable[[ProofJob], list[np.ndarray]]:
    """A worker that loads exports."""
    from raydpo.models.reloaded import nats_of_folder

    return lambda job: nats_of_folder(job.folder, job.request.sequences, job.dtype, job.device)


def _other_model(name: str, checkpoint: Path, why: str) -> IntegrityError:
    return IntegrityError(
        f"{name}/ would be another model than the one that was trained. Loaded again by plain transformers, {why}. Nothing was "
        f"published; the checkpoint {checkpoint} holds the weights as they were trained. Does this version of transformers "
        "save and load the architecture as it computes it? train.verify_export: false publishes it unproven."
    )
