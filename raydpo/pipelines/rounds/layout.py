"""Where everything of a run of rounds lies, and which prompts and seeds a round has: pure functions of the config.

run.dir/initial/evaluation/            the policy before the first round
run.dir/rounds/000/prompts/            each a committed piece
                   generations/ scores/ pairs/
                   reference/          the moving average, if that is the reference
                   train/              an ordinary run directory; its model/ is the policy of the next round
                   probe.json          what the trainers said of a few sequences
                   evaluation/ summary/
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from raydpo.artifacts import digest_of
from raydpo.config import Config
from raydpo.models.resolve import ResolvedModel

T = TypeVar("T")


@dataclass(frozen=True)
class Layout:
    """Paths of one run. initial: the model of `model.path`. Policy v is the initial one trained for v rounds."""

    config: Config
    dir: Path
    initial: ResolvedModel

    def round(self, index: int) -> Path:
        """Folder of a round, counted from 0."""
        return self.dir / "rounds" / f"{index:03d}"

    def policy(self, version: int) -> Path:
        """Model folder of a policy."""
        if version == 0:
            return self.initial.folder
        merged = self.config.train.lora is not None
        return self.round(version - 1) / "train" / ("model_merged" if merged else "model")

    def evaluation(self, version: int) -> Path:
        """Where the evaluation of a policy lies."""
        return (self.dir / "initial" if version == 0 else self.round(version - 1)) / "evaluation"

    def sampler(self, index: int) -> int:
        """Version of the policy that samples for a round: the one that it starts from, or with `split` an older one."""
        rounds = self.config.rounds
        assert rounds is not None
        return index if rounds.placement == "colocated" else max(0, index - rounds.max_staleness)


def prompts_of(round_index: int, num_prompts: int, per_round: int | None, seed: int) -> list[int]:
    """Indices of a round's prompts: the next of an endless line in which every prompt comes once a lap,
    and none twice a round."""
    if per_round is None or per_round >= num_prompts:
        return list(range(num_prompts))
    line: deque[int] = deque()
    laps = 0
    for _ in range(round_index + 1):
        chosen: dict[int, None] = {}
        deferred: list[int] = []  # already in this round: first in the next one
        while len(chosen) < per_round:
            if not line:
                fresh = list(range(num_prompts))
                random.Random(f"{seed} {laps}").shuffle(fresh)
                line, laps = deque(fresh), laps + 1
            prompt = line.popleft()
            if prompt in chosen:
                deferred.append(prompt)
            chosen[prompt] = None
        line.extendleft(reversed(deferred))
    return list(chosen)


def seed_of(*parts: object) -> int:
    """A seed below 2**31 from anything that JSON can write."""
    return int(digest_of(list(parts))[:8], 16) % 2**31


def chunks(rows: Sequence[T], size: int) -> list[Sequence[T]]:
    """Consecutive parts of at most `size`."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]
