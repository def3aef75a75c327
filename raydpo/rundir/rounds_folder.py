"""Where everything of a run of rounds lies, and which prompts and seeds a round has.

Decision: a round without pairs trains nothing and has no `train/`. The policy after it is the one before it, with its
version and folder, so what is known of that (evaluation, probe, average) holds as it is. The committed pairs say which
rounds those are; everything else is a pure function of the config.

run.dir/initial/evaluation/            the policy before the first round
run.dir/rounds/000/prompts/            each a committed piece
                   generations/ scores/ pairs/
                   reference/          the moving average, if that is the reference
                   train/              an ordinary run directory; its model/ is the policy of the next round, where it is saved
                   probe.json          log-probs of a few sequences under the new policy, by the trainers
                   evaluation/ summary/
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from raydpo.artifacts import digest_of, fetch, read_commit
from raydpo.config import Config
from raydpo.config.round_sections import RoundsSection
from raydpo.errors import IntegrityError
from raydpo.models.resolve import ResolvedModel
from raydpo.rundir.unsaved_rounds import UnsavedRounds

T = TypeVar("T")


@dataclass(frozen=True)
class RoundsFolder:
    """Paths of one run of rounds. Policy v is the initial one after v rounds.

    config: of the run.
    dir: its run directory.
    initial: the model of `model.path`.
    unsaved: rounds whose training is in memory.
    """

    config: Config
    dir: Path
    initial: ResolvedModel
    unsaved: UnsavedRounds = field(default_factory=UnsavedRounds)

    @property
    def rounds(self) -> RoundsSection:
        """The section `rounds`, which a config of rounds has."""
        assert self.config.rounds is not None
        return self.config.rounds

    def round(self, index: int) -> Path:
        """Folder of a round, counted from 0."""
        return self.dir / "rounds" / f"{index:03d}"

    def trained(self, version: int) -> int:
        """The version of the weights that there are after `version` rounds, whose pairs must be committed: lower where
        the last of these rounds trained nothing."""
        while version and _made_no_pairs(self.round(version - 1)):
            version -= 1
        return version

    def policy(self, version: int) -> Path:
        """Model folder of a policy."""
        version = self.trained(version)
        if version == 0:
            return self.initial.folder
        if (kept := self.kept_model(version - 1)) is not None:
            return kept
        fetch(folder := self.saved_model(version - 1))
        return folder

    def saved_model(self, index: int) -> Path:
        """Where the policy that round `index` made is saved, or would be."""
        return self.round(index) / "train" / ("model" if self.config.train.lora is None else "model_merged")

    def kept_model(self, index: int) -> Path | None:
        """The same policy in memory; None where it is not."""
        training = self.unsaved.training(index)
        found = None if training is None else training / self.saved_model(index).name
        return found if found is not None and found.is_dir() else None

    def was_saved(self, index: int) -> bool:
        """Whether round `index`, which is over, was trained in its folder, and its model and state were written there. Not what
        became of them since."""
        try:
            meta = read_commit(self.round(index) / "summary")["meta"]
        except IntegrityError:
            return self.unsaved.training(index) is None
        return bool(meta.get("is_saved", True))

    def is_unsaved(self, index: int) -> bool:
        """Whether the policy that round `index` made, which is over, is on no disk."""
        return not self.was_saved(index) and not self.saved_model(index).is_dir()

    def newest_saved(self, version: int) -> tuple[Path, int]:
        """(folder of the newest saved policy up to `version`, index of the round it is of); of the initial policy, -1."""
        version = self.trained(version)
        while version and self.is_unsaved(version - 1):
            version = self.trained(version - 1)
        if not version:
            return self.initial.folder, -1
        fetch(folder := self.saved_model(version - 1))
        return folder, version - 1

    def evaluation(self, version: int) -> Path:
        """Folder of the evaluation of a policy."""
        return (self.dir / "initial" if version == 0 else self.round(version - 1)) / "evaluation"

    @property
    def carries_optimizer(self) -> bool:
        """Whether a round's training goes on with the optimizer state of the one before."""
        return self.rounds.optimizer == "carried"

    @property
    def is_ahead(self) -> bool:
        """Whether the samples of a round are made while the one before it trains."""
        return self.rounds.placement == "split" and self.rounds.max_staleness > 0

    def sampler(self, index: int) -> int:
        """Number of rounds behind the policy that samples for round `index`, whose rounds must be over: all before it, or with
        `is_ahead` fewer, and with `rounds.sync_every` those up to the last sync."""
        return self.synced(max(0, index - self.rounds.max_staleness) if self.is_ahead else index)[0]

    def synced(self, version: int) -> tuple[int, int]:
        """(number of rounds behind the policy that generators have, optimizer steps since) after `version` rounds."""
        if version == 0 or self.rounds.sync_every is None:
            return version, 0
        policy, num_steps = read_commit(self.round(version - 1) / "summary")["meta"]["synced"]
        return int(policy), int(num_steps)

    def synced_after(self, index: int, num_steps: int) -> tuple[int, int]:
        """The same after round `index`, which trained `num_steps`."""
        if self.rounds.sync_every is None:
            return index + 1, 0
        policy, since = self.synced(index)
        since += num_steps
        return (index + 1, 0) if since >= self.rounds.sync_every else (policy, since)


def _made_no_pairs(folder: Path) -> bool:
    """Whether a round's pairs are committed and none. A round whose manifest is gone counts as one that trained: then a
    model that is not there is an error, and no older one is taken in silence."""
    try:
        return bool(read_commit(folder / "pairs")["meta"]["metrics"]["pairs/made"] == 0)
    except (IntegrityError, KeyError):
        return False


def prompts_of(round_index: int, num_prompts: int, per_round: int | None, seed: int) -> list[int]:
    """Indices of a round's prompts: the next of an endless sequence in which every prompt comes once an
    epoch, and none twice a round. Earlier rounds are not gone through."""
    if per_round is None or per_round >= num_prompts:
        return list(range(num_prompts))
    lap, place = divmod(round_index * per_round, num_prompts)
    line = _lap(lap, num_prompts, per_round, seed)
    chosen = line[place : place + per_round]
    if missing := per_round - len(chosen):
        chosen += _without(chosen, shuffled(lap + 1, num_prompts, seed), missing)[:missing]
    return chosen


def _lap(lap: int, num_prompts: int, per_round: int, seed: int) -> list[int]:
    """All prompts in the order of an epoch: shuffled, but for those that the round on its border had in the epoch before,
    which wait until that round is over. At most per_round / (num_prompts - per_round) epochs are gone back for that."""

    def border(before: int) -> int:
        """How many prompts the last round that begins in epoch `before` takes of it, if it goes on in the next one."""
        return (before + 1) * num_prompts % per_round

    first = lap
    while first and border(first - 1) > num_prompts - per_round:
        first -= 1  # else the end of the epoch before is as it was shuffled, whatever came first in it
    line = shuffled(first - 1, num_prompts, seed) if first else []
    for number in range(first, lap + 1):
        fresh = shuffled(number, num_prompts, seed)
        tail = border(number - 1) if number else 0
        line = _without(line[num_prompts - tail :], fresh, per_round - tail)
    return line


def shuffled(lap: int, num_prompts: int, seed: int) -> list[int]:
    """Indices of all prompts in the order of an epoch, before any of them waits for a round to be over."""
    line = list(range(num_prompts))
    random.Random(f"{seed} {lap}").shuffle(line)
    return line


def _without(taken: Sequence[int], line: Sequence[int], number: int) -> list[int]:
    """`line` with its first `number` prompts that are not `taken` before the taken ones among them."""
    chosen: list[int] = []
    deferred: list[int] = []
    seen = set(taken)
    for prompt in line:
        if len(chosen) == number:
            break
        (deferred if prompt in seen else chosen).append(prompt)
    return [*chosen, *deferred, *line[len(chosen) + len(deferred) :]]


def seed_of(*parts: object) -> int:
    """A seed below 2**31 from anything that JSON can write."""
    return int(digest_of(list(parts))[:8], 16) % 2**31


def chunks(rows: Sequence[T], size: int) -> list[Sequence[T]]:
    """Consecutive parts of at most `size`."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]
