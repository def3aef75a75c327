"""Whether `rounds.save_every` leaves policies in memory, or every round is saved all the same.

Comes in: a run of rounds in its session. Goes out: a folder in memory for trainings, or why there is none, as a clause.
Decision: whoever needs an unsaved policy reads its folder in memory; what would be read elsewhere, or after it is gone, is
saved.
"""

from __future__ import annotations

from raydpo import runtime
from raydpo.artifacts import digest_of
from raydpo.artifacts.shared_folder import SharedFolder, create
from raydpo.disk import sized
from raydpo.errors import StorageError
from raydpo.reference.way import whole_bytes
from raydpo.rounds.setup import Setup
from raydpo.rundir.rounds_folder import RoundsFolder
from raydpo.schema.events import Note, Observer

_SPARE_BYTES = 64 * 2**20
"""Beside models: token ids of pairs, and weights on their way to generators."""


def memory_for(setup: Setup, hindrance: str, observer: Observer) -> SharedFolder | None:
    """Where the trainings of rounds lie that are not saved; None where every round is, which is said.

    hindrance: why trainers end after each training, as a clause; empty where they stand.
    """
    every = setup.rounds.save_every
    if every == 1:
        return None
    if why := why_saved_each_round(setup.layout, hindrance):
        say_saved(observer, every, why)
        return None
    num_bytes = _most_bytes(setup)
    try:
        folder = create(digest_of(str(setup.layout.dir.resolve()))[:16], num_bytes)
    except StorageError as error:
        say_saved(observer, every, str(error))
        return None
    text = f"policies of the rounds between are kept in {folder.path}, up to {sized(num_bytes)} of memory at one time"
    observer(Note("info", f"rounds.save_every: {every}: {text}"))
    return folder


def say_saved(observer: Observer, every: int, why: str) -> None:
    """Say that a wish is not met."""
    observer(Note("warning", f"rounds.save_every: {every}, and every round is saved: {why}"))


def why_saved_each_round(layout: RoundsFolder, hindrance: str) -> str:
    """Why no policy can be in memory alone, as a clause; empty where it can. hindrance: as of `memory_for`."""
    config, rounds = layout.config, layout.rounds
    if rounds.reference == "ema":
        return "with rounds.reference: ema an average of the policies is written in every round"
    if config.train.lora is not None:
        return "with train.lora the adapter of a round is one of the model of the round before"
    if (number := runtime.count_nodes()) > 1:
        return f"there are {number} nodes, and what is in the memory of one is not seen on the others"
    if not layout.carries_optimizer:
        return ""
    if why := hindrance or ("train.compile" if config.train.compile else ""):
        return f"with rounds.optimizer: carried the state is in trainers that stand, and these do not ({why})"
    if rounds.sync_every is not None or (layout.is_ahead and rounds.max_staleness > 1):
        return "with rounds.optimizer: carried an older policy, which may sample, could not be trained again"
    return ""


def _most_bytes(setup: Setup) -> int:
    """Of all policies in memory at one time: those that train or sample, and the one that is made, staged and published."""
    rounds, layout = setup.rounds, setup.layout
    num_sampling = rounds.max_staleness * layout.is_ahead + (rounds.sync_every is not None)
    num_models = 3 + num_sampling + layout.carries_optimizer
    return num_models * (whole_bytes(layout.initial, setup.engine.dtype) or 0) + _SPARE_BYTES
