"""The batches of one rank, as from a dataloader: order -> pack -> collate, for a training step and for an evaluation.

Decision: every rank computes the layout of the whole global batch by itself (it is cheap and deterministic), so ranks
agree on counts and on the number of micro-batches without a word to each other. Examples of one prompt that meet in a
global batch go to one micro-batch and share it; the order of examples is not changed so that more of them meet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from raydpo.batches import MicroBatch, collate, pack
from raydpo.batches.micro_batches import Examples, Lookup
from raydpo.models.layout import Layout
from raydpo.models.logprobs import CHUNK_TOKENS, count_chunks
from raydpo.models.work import TOKENS, Work, row_counts, shared_prompt_counts
from raydpo.objectives.loss import Loss

EVAL_EXAMPLES = 1024
"""Examples that are laid out at a time in an evaluation."""


@dataclass(frozen=True)
class Feed:
    """One split as one rank sees it.

    table: lengths, labels and weights of the examples of the split.
    rank, num_ranks: whose share of a global batch is taken, and of how many.
    num_answers: answers that the loss reads; a mismatched one stands after them.
    tokens_per_microbatch: token budget of a micro-batch.
    lookup: row keys -> reference log-probs, None without a reference.
    chunk_tokens: answer tokens of one call of the head.
    layout: one packed stream, or padded rows.
    work: FLOPs, by which ranks are balanced.
    entries: (name, examples) of each entry of the data, in the order of the table; none where there is only one.
    is_sharded: under ZeRO-3, where DeepSpeed gathers a weight once a micro-batch only while every micro-batch calls
        the same modules. Each then calls the head as often as the fullest one may need; the price is that chunks are
        recomputed where one chunk would have done.
    """

    table: Examples
    rank: int
    num_ranks: int
    num_answers: int
    tokens_per_microbatch: int
    lookup: Lookup | None
    chunk_tokens: int = CHUNK_TOKENS
    layout: Layout = "padded"
    work: Work = TOKENS
    entries: tuple[tuple[str, int], ...] = ()
    is_sharded: bool = False

    @property
    def answers(self) -> range:
        """Columns of the answers that the loss reads."""
        return range(self.num_answers)

    def columns(self, kind: str) -> range:
        """Columns that a pass of `kind` over the global batch looks at."""
        return range(self.num_answers, self.num_answers + 1) if kind == "mismatched" else self.answers

    def row_lengths(self, examples: np.ndarray, columns: range | None = None) -> np.ndarray:
        """Prompt + answer tokens of every row of `examples`: [E, A] int64."""
        found: np.ndarray = self._answer_lengths(examples, columns) + self._prompt_lengths(examples)[:, None]
        return found

    def sequence_lengths(self, examples: np.ndarray, columns: range | None = None) -> np.ndarray:
        """Tokens of the sequences that a model reads: [E, A], or packed [E, 1], a prompt once and then its answers."""
        if self.layout == "padded":
            return self.row_lengths(examples, columns)
        found: np.ndarray = self._prompt_lengths(examples) + self._answer_lengths(examples, columns).sum(axis=1)
        return found[:, None]

    def micro_batches(self, examples: np.ndarray, columns: range | None = None) -> list[tuple[list[int], int]]:
        """This rank's micro-batches of a global batch: (positions in it, head calls). As many on every rank.

        Head calls are those of the rank with the most answer tokens in its micro-batch of the same place, or more.
        """
        answers = self._answer_lengths(examples, columns)
        units = self._units(examples, answers)
        rows, work = self._costs(examples, answers, units)
        is_padded = self.layout == "padded"
        packed = pack(rows, self.num_ranks, self.tokens_per_microbatch, is_padded=is_padded, work=work)
        layout = [[[position for unit in micro for position in units[unit]] for micro in rank] for rank in packed]
        tokens = self.table.loss_lengths[examples][:, list(self.answers if columns is None else columns)].sum(axis=1)
        least = count_chunks(self.tokens_per_microbatch, self.chunk_tokens) if self.is_sharded else 1
        calls = [
            max(least, *(count_chunks(int(tokens[m].sum()), self.chunk_tokens) for m in ms))
            for ms in zip(*layout, strict=True)
        ]
        return list(zip(layout[self.rank], calls, strict=True))

    def _units(self, examples: np.ndarray, answers: np.ndarray) -> list[list[int]]:
        """Positions that go to one micro-batch: those of one prompt, which they then share, as far as the budget allows."""
        if self.layout == "padded":
            return [[position] for position in range(len(examples))]
        units: list[list[int]] = []
        unit_of: dict[bytes, int] = {}
        tokens: list[int] = []
        for position, own in enumerate(answers.sum(axis=1).tolist()):
            prompt = self.table.prompt_ids(int(examples[position]))
            key = prompt.tobytes()
            unit = unit_of.get(key)
            if unit is None or tokens[unit] + own > self.tokens_per_microbatch:
                unit_of[key] = len(units)
                units.append([position])
                tokens.append(len(prompt) + own)
            else:
                units[unit].append(position)
                tokens[unit] += own
        return units

    def _costs(
        self, examples: np.ndarray, answers: np.ndarray, units: list[list[int]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """What `pack` fits into the budget and what it balances, of each unit."""
        prompts = self._prompt_lengths(examples)
        if self.layout == "padded":
            return prompts[:, None] + answers, self.work.step(*row_counts(prompts, answers))
        held = np.array([len(unit) for unit in units]) * answers.shape[1]
        of_unit = np.zeros((len(units), held.max()), dtype=np.int64)  # no answer: a length of 0, which costs nothing
        of_unit[np.arange(held.max()) < held[:, None]] = answers[np.concatenate(units)].reshape(-1)
        counts = shared_prompt_counts(prompts[[unit[0] for unit in units]], of_unit)
        return counts[0][:, None], self.work.step(*counts)

    def batches(self, examples: np.ndarray, columns: range | None = None, first: int = 0) -> Iterator[MicroBatch]:
        """Tensors of this rank's share of a global batch. first: position of `examples` in it, if they are a part."""
        columns = self.answers if columns is None else columns
        for micro, num_chunks in self.micro_batches(examples, columns):
            chosen, positions = [int(examples[p]) for p in micro], [first + p for p in micro]
            yield collate(self.table, chosen, columns, self.lookup, num_chunks, positions, self.layout)

    def _answer_lengths(self, examples: np.ndarray, columns: range | None) -> np.ndarray:
        columns = self.answers if columns is None else columns
        found: np.ndarray = self.table.answer_lengths[examples][:, list(columns)].astype(np.int64)  # costs are products
        return found

    def _prompt_lengths(self, examples: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.table.prompt_lengths[examples].astype(np.int64)
        return found

    def blocks(self, columns: range | None = None) -> Iterator[Iterator[MicroBatch]]:
        """This rank's share of the whole split, block by block. The split is one global batch."""
        for start in range(0, len(self.table), EVAL_EXAMPLES):
            yield self.batches(np.arange(start, min(start + EVAL_EXAMPLES, len(self.table))), columns, start)

    def counts(self, examples: np.ndarray, loss: Loss) -> list[int]:
        """The denominator of each term of the loss for a global batch: examples, or tokens that the loss covers."""
        return loss.counts(len(examples), int(self.table.loss_lengths[examples][:, 0].sum()))
