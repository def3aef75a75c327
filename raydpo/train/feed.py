"""The batches of one rank: order -> pack -> collate, for a training step and for an evaluation.

Decision: every rank computes the layout of the whole global batch by itself (it is cheap and deterministic), so ranks
agree on counts and on the number of micro-batches without a word to each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from raydpo.artifacts import ExampleTable
from raydpo.batches import MicroBatch, collate, pack
from raydpo.batches.collate import Lookup
from raydpo.models.logprobs import CHUNK_TOKENS, count_chunks
from raydpo.objectives import Objective

EVAL_EXAMPLES = 1024
"""Examples that are laid out at a time in an evaluation."""


@dataclass(frozen=True)
class Feed:
    """One split seen from one rank. lookup: row keys -> reference log-probs, None without a reference."""

    table: ExampleTable
    rank: int
    num_ranks: int
    num_answers: int
    tokens_per_microbatch: int
    lookup: Lookup | None
    chunk_tokens: int = CHUNK_TOKENS

    def row_lengths(self, examples: np.ndarray) -> np.ndarray:
        """Prompt + answer tokens of every row of `examples`: [E, A] int64."""
        answers = self.table.answer_lengths[examples][:, : self.num_answers]
        return answers + self.table.prompt_lengths[examples][:, None]

    def micro_batches(self, examples: np.ndarray) -> list[tuple[list[int], int]]:
        """This rank's micro-batches of a global batch: (example indices, head calls). As many on every rank.

        Head calls are those of the rank with the most answer tokens in its micro-batch of the same place.
        """
        layout = pack(self.row_lengths(examples), self.num_ranks, self.tokens_per_microbatch)
        answers = self.table.answer_lengths[examples][:, : self.num_answers].sum(axis=1)
        calls = [
            max(count_chunks(int(answers[m].sum()), self.chunk_tokens) for m in ms) for ms in zip(*layout, strict=True)
        ]
        mine = layout[self.rank]
        return [([int(examples[p]) for p in micro], number) for micro, number in zip(mine, calls, strict=True)]

    def batches(self, examples: np.ndarray) -> Iterator[MicroBatch]:
        """Tensors of this rank's share of a global batch."""
        for micro, num_chunks in self.micro_batches(examples):
            yield collate(self.table, micro, self.num_answers, self.lookup, num_chunks)

    def blocks(self) -> Iterator[np.ndarray]:
        """The whole split in blocks of examples, for an evaluation."""
        for start in range(0, len(self.table), EVAL_EXAMPLES):
            yield np.arange(start, min(start + EVAL_EXAMPLES, len(self.table)))

    def count(self, examples: np.ndarray, objective: Objective) -> int:
        """The denominator of a global batch in the objective's unit."""
        if objective.unit == "pairs":
            return len(examples)
        return int(self.table.answer_lengths[examples][:, : self.num_answers].sum())
