"""The training of a round: an ordinary run directory, made by the same `train` that every user calls.

Comes in: the pairs of a round. Goes out: the summary of the run, and the policy's weights to whoever receives them.
Decision: a round's config is the user's with paths, reference and seed put in; nothing else of a round is known there.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raydpo.artifacts import commit_folder, verify_folder, write_json
from raydpo.config import Config
from raydpo.config.round_sections import OF_THE_RUN, GenerateSection
from raydpo.disk import full_disk, removed_on_error
from raydpo.driver.trainer_scoring import hindrance
from raydpo.errors import IntegrityError
from raydpo.models.blend import blend
from raydpo.models.resolve import resolve_model
from raydpo.rundir.rounds_folder import RoundsFolder, seed_of
from raydpo.schema.json_text import read_object
from raydpo.schema.rank_events import PolicyProbe
from raydpo.schema.samples import Score

_UNSAVED = {"save": "weights", "save_every": None, "save_every_minutes": None}
"""Of `train`, where nothing is to go on from a checkpoint."""


def training_config(
    layout: RoundsFolder, index: int, files: Sequence[str], reference: Path | None, folder: Path | None = None
) -> Config:
    """The config of the run in `folder`, a run directory in memory; None: in `<round>/train`. reference: None where it is the
    policy that the round starts from."""
    config = layout.config
    train: dict[str, Any] = {} if folder is None else dict(_UNSAVED)
    if config.train.lora is not None:
        train["lora"] = config.train.lora.model_copy(update={"merge": True})
    if layout.carries_optimizer and layout.trained(index):
        train["warmup_fraction"] = 0.0  # the first round's was the run's
    updates: dict[str, dict[str, Any]] = {
        "run": {
            "dir": str(folder or layout.round(index) / "train"),
            "seed": seed_of(config.run.seed, index),
            "resume": "auto",
        },
        "model": {"path": str(layout.policy(index)), "revision": None},
        "data": {"train": tuple(files), "format": "auto", "eval_fraction": 0.0},
        "reference": {"model": None if reference is None else str(reference), "revision": None, **_holder(layout)},
        "train": train,
    }
    sections = {name: getattr(config, name).model_copy(update=values) for name, values in updates.items()}
    return config.model_copy(
        update={**sections, "rounds": None, "judge": None, "generate": GenerateSection(), "profile": False}
    )


def _holder(layout: RoundsFolder) -> dict[str, str]:
    """Who holds the reference of a round, where `reference.weights: auto` leaves it open: the trainers themselves where it is
    the policy that they start from, and a forward takes as many threads and no more memory than when they train."""
    section, train = layout.config.reference, layout.config.train
    is_own_start = layout.rounds.reference == "previous_round" and layout.config.objective.needs_reference
    is_open = section.weights == "auto" and section.sync_every is None and train.sequence_parallel_size == 1
    fits = section.tokens_per_batch <= train.tokens_per_microbatch
    is_alike = train.gpus_per_worker > 0 or train.cpus_per_worker == section.cpus_per_worker
    is_theirs = (
        is_own_start and is_open and fits and is_alike and not hindrance(layout.config, starts_at_reference=True)
    )
    return {"weights": "trainers"} if is_theirs else {}


def reference_of(layout: RoundsFolder, index: int) -> Path | None:
    """What a round's log-ratios are measured from; None: the policy that it starts from. Makes a moving average."""
    rounds = layout.rounds
    if layout.trained(index) == 0 and rounds.reference in OF_THE_RUN:
        return None
    if rounds.reference == "initial":
        return layout.initial.folder
    if rounds.reference == "previous_round":
        return None
    return average_of(layout, index) if rounds.reference == "ema" else Path(rounds.reference)


def reference_folder(layout: RoundsFolder, index: int) -> Path:
    """The model folder that a round's log-ratios are measured from."""
    rounds = layout.rounds
    if rounds.reference not in OF_THE_RUN:
        return resolve_model("rounds.reference", rounds.reference, None).folder
    return reference_of(layout, index) or layout.policy(index)


def average_of(layout: RoundsFolder, index: int) -> Path:
    """The moving average of the policies 0 to `index`: decay * the one before + (1 - decay) * policy `index`. A round
    without pairs has made no policy, and does not move it."""
    rounds = layout.rounds
    index = layout.trained(index)
    if index == 0:
        return layout.initial.folder
    folder = layout.round(index) / "reference"
    if verify_folder(folder):
        before = average_of(layout, index - 1)
        staging = folder.with_name(".reference-work")
        shutil.rmtree(staging, ignore_errors=True)
        staging.parent.mkdir(parents=True, exist_ok=True)
        with removed_on_error(staging):
            with full_disk(folder):
                blend(layout.policy(index), before, 1 - rounds.ema_decay, staging)
            commit_folder(staging, folder, {"decay": rounds.ema_decay}, replace=True)
    return folder


def write_probe(folder: Path, probe: PolicyProbe) -> None:
    """Keep the trainers' log-probs of a few sequences in the folder of the round."""
    write_json(folder / "probe.json", asdict(probe))


def read_probe(folder: Path) -> PolicyProbe | None:
    """What `write_probe` kept; None where training was over before there was a probe."""
    path = folder / "probe.json"
    if not path.is_file():
        return None
    try:
        found = read_object(path)
        sequences = tuple((tuple(prompt), tuple(answer)) for prompt, answer in found["request"]["sequences"])
        nats, top_ids, top_nats = (tuple(map(tuple, found[key])) for key in ("nats", "top_ids", "top_nats"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"{path} cannot be read ({type(error).__name__}). Remove it: the round's generators are then not compared"
        ) from error
    return PolicyProbe(Score(sequences), nats, top_ids, top_nats)
