"""The policies of rounds that are not saved: where they are trained, what of them is written, which have to be made again.

Comes in: rounds as they are trained and committed. Goes out: run directories in memory, and rounds to train again from their
committed pairs. Decision: pairs and measures are on disk in any case, and a training follows from its pairs, so what a kill
costs is trainings and nothing else.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raydpo.artifacts import fence, fsync, settle, verify_folder
from raydpo.disk import full_disk, removed_on_error
from raydpo.driver.standing_trainers import StandingTrainers
from raydpo.errors import IntegrityError, RaydpoError
from raydpo.rounds.optimizer_state import forget_state, has_state
from raydpo.rounds.pair_parts import files_of
from raydpo.rounds.save_choice import memory_for, say_saved, why_saved_each_round
from raydpo.rounds.setup import Setup
from raydpo.rundir.rounds_folder import RoundsFolder
from raydpo.runtime import deferred, has_grace, requested
from raydpo.schema.events import Note, Observer

_HEAVY = ("checkpoints", "data", "log", "lock", "model", "model_merged", "profile")
"""What is not written of a training in memory."""


class KeptPolicies:
    """Of an open run, in its session. Close it after use."""

    def __init__(self, setup: Setup, trainers: StandingTrainers, observer: Observer) -> None:
        self._layout, self._trainers, self._observer = setup.layout, trainers, observer
        self._newest = 0
        self._is_whole = False  # whether this attempt has what it goes on from
        if (folder := memory_for(setup, trainers.hindrance, observer)) is not None:
            setup.layout.unsaved.begin(folder, setup.rounds.save_every)

    def run_dir(self, index: int) -> Path | None:
        """Where round `index` is trained in memory; None where it is saved."""
        unsaved = self._layout.unsaved
        if unsaved.every > 1 and (why := why_saved_each_round(self._layout, self._trainers.hindrance)):
            say_saved(self._observer, unsaved.every, why)  # it is known by now
            unsaved.every = 1
        is_last = index + 1 == self._layout.rounds.num_rounds
        return None if is_last or unsaved.saves(index) else unsaved.make(index)

    def run_dir_again(self, index: int, *, is_saved: bool) -> Path | None:
        """The same of a round that is trained again, from its first step."""
        if not is_saved and (found := self.run_dir(index)) is not None:
            return found
        forget_state(self._layout, index)
        return None

    def pairs_again(self, index: int) -> tuple[str, ...]:
        """Files of the pairs of a round that is trained again. Raises IntegrityError where they are damaged."""
        folder = self._layout.round(index) / "pairs"
        if problems := verify_folder(folder):
            raise IntegrityError(
                f"{folder} is damaged ({problems[0]}), and round {index} has to be trained again from it, because its model "
                f"was not saved (rounds.save_every). Remove the folders of round {index} and of all after it, and run the same "
                "command; they are made again."
            )
        return tuple(map(str, files_of(folder)))

    @contextmanager
    def recorded(self, index: int, training: Path | None) -> Iterator[None]:
        """Around a training: what it tells of itself is in the folder of the round, also where it is in memory."""
        try:
            yield
        finally:
            if training is not None:
                _write_records(training, self._layout.round(index) / "train")
        if training is not None and not self._layout.carries_optimizer:
            shutil.rmtree(training / "checkpoints", ignore_errors=True)

    def committed(self, index: int) -> None:
        """Round `index` is committed: forget the policies that nobody needs any more."""
        self._newest = index + 1
        policies = {self._newest, *self._sampling(self._newest)}
        self._layout.unsaved.keep({self._layout.trained(policy) - 1 for policy in policies})

    def lost(self, index: int) -> list[int]:
        """Rounds that have to be trained again before round `index`, the first one that this attempt makes, because an earlier
        one did not save their policies."""
        if self._is_whole:
            return []
        self._is_whole = True
        found = set(lost_rounds(self._layout, index, with_state=self._layout.carries_optimizer))
        for policy in self._sampling(index):
            found |= set(lost_rounds(self._layout, policy, with_state=False))
        if found:  # what went on from a policy that is made again begins anew: on a GPU its last bits may be others
            forget_state(self._layout, index)
        return self._told(sorted(found))

    def lost_state(self, index: int) -> list[int]:
        """The same where trainers died that alone had the optimizer state of round `index`."""
        return self._told(lost_rounds(self._layout, index, with_state=True))

    def lost_at_end(self, index: int) -> list[int]:
        """The same after round `index`, the last one, whose policy has to be on disk. Writes it where it is in memory."""
        layout = self._layout
        version = layout.trained(index + 1)
        if not version or not layout.is_unsaved(version - 1) or _save_policy(layout, version - 1):
            return []
        return self._told(lost_rounds(layout, version, with_state=layout.carries_optimizer))

    def close(self) -> None:
        """Save the newest policy, unless the run was told to end at once; and forget all others."""
        version = self._layout.trained(self._newest)
        try:
            if version and self._layout.is_unsaved(version - 1) and (has_grace() or not requested()):
                _save_policy(self._layout, version - 1)
        except RaydpoError as error:
            text = f"the policy of round {version - 1} was not saved, and the next call trains it again: {error}"
            self._observer(Note("warning", text))
        finally:
            self._layout.unsaved.close()

    def _sampling(self, version: int) -> set[int]:
        """Policies that sample for rounds after `version` rounds, as far as these are there."""
        oldest = version - self._layout.rounds.max_staleness if self._layout.is_ahead else version
        return {self._layout.synced(number)[0] for number in range(max(0, oldest), version + 1)}

    def _told(self, indices: list[int]) -> list[int]:
        if indices:
            which = ", ".join(map(str, indices)) if len(indices) < 5 else f"{indices[0]} to {indices[-1]}"
            text = f"not saved: rounds {which}; they are trained again from their pairs, and nothing is sampled again"
            self._observer(Note("info", text))
        return indices


def lost_rounds(layout: RoundsFolder, version: int, *, with_state: bool) -> list[int]:
    """Rounds that have to be trained, in this order, so that the policy after `version` rounds is there. with_state: and the
    optimizer state, for trainers that start."""
    found: list[int] = []
    version = layout.trained(version)
    while version and not _is_there(layout, version - 1, with_state=with_state):
        found.append(version - 1)
        version = layout.trained(version - 1)
    return found[::-1]


def _is_there(layout: RoundsFolder, index: int, *, with_state: bool) -> bool:
    if layout.was_saved(index):
        return True
    if with_state:
        return has_state(layout, index)
    return not layout.is_unsaved(index) or layout.kept_model(index) is not None


def _write_records(training: Path, folder: Path) -> None:
    """Copy what a training in memory tells of itself (config, metrics, summary) into the folder of its round."""
    records = [path for path in training.iterdir() if path.name not in _HEAVY and not path.name.startswith(".")]
    with full_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path in records:
            if path.is_dir():
                shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
            else:
                shutil.copyfile(path, folder / path.name)
    settle(folder, is_urgent=False)


def _save_policy(layout: RoundsFolder, index: int) -> bool:
    """Write the policy that round `index` made from memory to disk; False where it is not there. A reader sees all of it or
    none."""
    source, final = layout.kept_model(index), layout.saved_model(index)
    if source is None:
        return False
    fresh = final.with_name(f".{final.name}-{uuid.uuid4().hex[:12]}")
    with removed_on_error(fresh), full_disk(final):
        shutil.copytree(source, fresh)
        for path in (*fresh.rglob("*"), fresh):
            fsync(path)
        with deferred():
            fence(final)
            fresh.rename(final)
    settle(final)
    return True
