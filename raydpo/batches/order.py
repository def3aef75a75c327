"""Shuffle: which examples make up which optimizer step, a pure function of (number of examples, seed, step).

Decision: a global batch is a set of example indices fixed by seed and step alone. Ranks, micro-batches and restarts
cannot change it; resuming needs no more than the step number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from raydpo.config import Config


@dataclass(frozen=True)
class Order:
    """The steps of a run: what a shuffling sampler of a dataloader gives elsewhere.

    A batch never crosses an epoch; the last one of an epoch may be smaller.

    num_examples: of the split.
    batch_size: examples of a global batch.
    epochs: may be fractional: the last, partial epoch then has round(fraction * num_examples) examples.
    seed: of the shuffle.
    max_steps: where to end at the latest, None for no bound.
    """

    num_examples: int
    batch_size: int
    epochs: float
    seed: int
    max_steps: int | None = None

    @classmethod
    def of(cls, config: Config, num_examples: int) -> Order:
        """The order of a run: what trainers read, and what has to be scored for them."""
        train = config.train
        return cls(num_examples, train.global_batch_pairs, train.epochs, config.run.seed, train.max_steps)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.num_examples / self.batch_size)

    @property
    def num_steps(self) -> int:
        whole = int(self.epochs)
        rest = round((self.epochs - whole) * self.num_examples)
        steps = whole * self.steps_per_epoch + math.ceil(rest / self.batch_size)
        steps = max(steps, 1)
        return min(steps, self.max_steps) if self.max_steps is not None else steps

    def epoch(self, epoch: int) -> np.ndarray:
        """The order of one epoch: a permutation of the examples, int64."""
        order = _permutation(self.num_examples, self.seed, epoch)
        whole = int(self.epochs)
        if epoch == whole:  # the fractional epoch at the end
            rest = round((self.epochs - whole) * self.num_examples)
            order = order[: max(rest, 1)]
        return order

    def examples(self, step: int) -> np.ndarray:
        """Examples of step `step`, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return self.epoch(epoch)[place * self.batch_size : (place + 1) * self.batch_size]

    def epoch_at(self, step: int) -> float:
        """Epochs finished after `step` steps."""
        return step / self.steps_per_epoch


@lru_cache(maxsize=2)
def _permutation(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(num_examples)
