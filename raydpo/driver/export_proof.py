"""The proof of an export: the folder is loaded again as anybody would, and says what its trainers said.

Comes in: a folder that is not published yet, and the trainers' log-probs of a few rows at its step. Goes out: how far they are
apart, or an error. Decision: a worker of its own loads it, on a GPU where the run trains on one; a model that is larger than
what is free there is held one layer at a time, as `reference.weights: auto` would. In rounds on CPUs that worker stands. Price:
one load for each folder that is published.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raydpo import runtime
from raydpo.config.sections import TrainSection
from raydpo.driver.actors import libraries_of, trainer_limits
from raydpo.driver.evaluation_stage import weights_of
from raydpo.driver.ledger import Ledger
from raydpo.errors import IntegrityError
from raydpo.models.adapter_files import is_adapter
from raydpo.models.agreement import compare, tolerance_of
from raydpo.models.resolve import ResolvedModel
from raydpo.reference.way import Weights, choose_way
from raydpo.rundir.workspace import Workspace
from raydpo.schema.events import Note, Observer
from raydpo.schema.json_text import read_object
from raydpo.schema.rank_events import PROBE_FILE
from raydpo.schema.samples import Score


@dataclass(frozen=True)
class ProofJob:
    """folder: of the export. request: rows that it scores. weights: how it is held, see `raydpo.reference.way`."""

    folder: Path
    request: Score
    dtype: str
    device: str
    weights: Weights = "whole"


@dataclass(frozen=True)
class Reloaded:
    """What a loaded export said. nats: of each row. said: how it was held, where that is worth a word. weight_bytes: of a
    streamed one, bytes of weights that were read."""

    nats: list[np.ndarray]
    said: str = ""
    weight_bytes: int = 0


class StandingProver:
    """The worker that loads the exports of a run of rounds, one after the other. On CPUs, in the session of the run; close it
    after use. It reserves no CPU, because it works while trainers wait. ledger: what it starts and loads."""

    def __init__(self, train: TrainSection, ledger: Ledger) -> None:
        self._ledger = ledger
        limits = trainer_limits(train) | {"cpus": 0, "threads": train.cpus_per_worker, "preload": libraries_of()}
        placed = ledger.at_place("export proof", loads=False)
        self._pool = runtime.Pool("verify", verifier, num_workers=1, placed=placed, **limits)

    def load(self, job: ProofJob) -> Reloaded:
        """Raises as `Pool.run`."""
        found: Reloaded
        ((_, found),) = self._pool.run([job])
        self._ledger.loaded("export proof")
        return found

    def close(self) -> None:
        self._pool.close()


def prove(
    workspace: Workspace,
    folder: Path,
    checkpoint: Path,
    name: str,
    observer: Observer,
    prover: StandingProver | None = None,
) -> dict[str, float]:
    """Load the export in `folder`, which becomes `name`, and compare it with its trainers: what the summary says of it.

    prover: who loads it; None: a worker that ends afterwards.
    Nothing where it is switched off or the checkpoint has no probe, which is said. Raises IntegrityError for another model.
    """
    train = workspace.config.train
    if not train.verify_export or not (checkpoint / PROBE_FILE).is_file():
        why = "train.verify_export is off" if not train.verify_export else f"{checkpoint} has no {PROBE_FILE}"
        observer(Note("warning", f"{name}/ is published without having been loaded again: {why}"))
        return {}
    request, theirs = read_probe(checkpoint / PROBE_FILE)
    job = ProofJob(folder, request, workspace.dtype, "cuda" if train.gpus_per_worker else "cpu", weights_of(workspace))
    if prover is not None:
        ours = prover.load(job)
    else:
        limits = trainer_limits(train) | {"gpus": train.gpus_per_worker, "preload": libraries_of()}
        ((_, ours),) = runtime.run_pool("verify", verifier, [job], num_workers=1, **limits)
    if ours.said:
        observer(Note("info", f"{name}/: {ours.said}"))
    found = compare(ours.nats, theirs, tolerance_of(workspace.dtype))
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
    if ours.weight_bytes:
        worst["weight_bytes"] = ours.weight_bytes
    how = f"streamed ({ours.weight_bytes / 1e9:,.2f} GB of weights read)" if ours.weight_bytes else "loaded again"
    text = f"{name}/ was {how} and says what was trained: {found.rows} rows within {found.worst_nats:.2g} nats"
    observer(Note("info", text))
    return worst


def read_probe(path: Path) -> tuple[Score, list[np.ndarray]]:
    """Sequences, and the trainers' log-probs of their answers."""
    found = read_object(path)
    request = Score(tuple((tuple(prompt), tuple(answer)) for prompt, answer in found["sequences"]))
    return request, [np.array(nats) for nats in found["nats"]]


def verifier() -> Callable[[ProofJob], Reloaded]:
    """A worker that loads exports."""
    return reloaded


def reloaded(job: ProofJob) -> Reloaded:
    """What the export says, held as its size and the device ask for. Raises what loading raises."""
    from raydpo.models.reloaded import nats_of_folder, streamed_nats_of_folder

    asked = job.folder, job.request.sequences, job.dtype, job.device
    if is_adapter(job.folder):
        return Reloaded(nats_of_folder(*asked))
    way = choose_way(job.weights, ResolvedModel(job.folder.name, None, job.folder), job.dtype, job.device)
    said = way.said
    if way.is_streamed:
        try:
            nats, weight_bytes = streamed_nats_of_folder(*asked)
            return Reloaded(nats, said, weight_bytes)
        except NotImplementedError as error:
            said = f"{said}; but {error}, so it is loaded whole and may not fit"
    return Reloaded(nats_of_folder(*asked), said)


def _other_model(name: str, checkpoint: Path, why: str) -> IntegrityError:
    return IntegrityError(
        f"{name}/ would be another model than the one that was trained. Loaded again by plain transformers, {why}. Nothing was "
        f"published; the checkpoint {checkpoint} holds the weights as they were trained. Does this version of transformers "
        "save and load the architecture as it computes it? train.verify_export: false publishes it unproven."
    )
