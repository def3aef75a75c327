"""Token rows -> the tensors of one micro-batch.

Decision: right padding and plain position ids, so that every architecture sees an ordinary batch; where answers start
is an index, not a mask, so that only answer positions reach the head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from raydpo.artifacts import ExampleTable
from raydpo.models.logprobs import SequenceBatch

Rows = Sequence[tuple[np.ndarray, np.ndarray]]
"""(prompt ids, answer ids) of each row."""
Lookup = Callable[[list[str]], list[np.ndarray]]
"""Row keys -> reference log-probs of their answer tokens, float32 nats."""


@dataclass(frozen=True)
class MicroBatch:
    """What one forward of the trainer needs.

    answers: [E, A] int64, sequence of each answer. reference_nats: [N] float32 or None. num_tokens: real tokens.
    """

    sequences: SequenceBatch
    answers: Tensor
    reference_nats: Tensor | None
    num_tokens: int

    @property
    def num_examples(self) -> int:
        return self.answers.shape[0]

    def to(self, device: torch.device | str) -> MicroBatch:
        nats = None if self.reference_nats is None else self.reference_nats.to(device)
        return replace(self, sequences=self.sequences.to(device), answers=self.answers.to(device), reference_nats=nats)


def collate_rows(rows: Rows, pad_id: int = 0) -> SequenceBatch:
    """Pad rows to the longest. A row's prompt must hold at least one token, which predicts the first answer token."""
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = np.full((len(rows), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    predictors, targets, sequences = [], [], []
    for s, (prompt, answer) in enumerate(rows):
        length = len(prompt) + len(answer)
        ids[s, : len(prompt)], ids[s, len(prompt) : length] = prompt, answer
        mask[s, :length] = 1
        predictors.append(s * longest + np.arange(len(prompt) - 1, length - 1))
        targets.append(np.asarray(answer, dtype=np.int64))
        sequences.append(np.full(len(answer), s, dtype=np.int64))
    return SequenceBatch(
        input_ids=torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask),
        predictors=torch.from_numpy(np.concatenate(predictors)),
        targets=torch.from_numpy(np.concatenate(targets)),
        sequences=torch.from_numpy(np.concatenate(sequences)),
    )


def collate(
    table: ExampleTable, examples: Sequence[int], num_answers: int, lookup: Lookup | None, num_chunks: int = 1
) -> MicroBatch:
    """The micro-batch of `examples`. An empty list gives a dummy of one token whose loss counts nothing.

    num_chunks: calls of the head that every rank makes for its micro-batch.
    """
    if not examples:
        dummy = replace(collate_rows([(np.zeros(1, np.int32), np.zeros(1, np.int32))]), num_chunks=num_chunks)
        nats = None if lookup is None else torch.zeros(1)
        return MicroBatch(dummy, torch.zeros((0, num_answers), dtype=torch.int64), nats, 0)
    rows, keys = [], []
    for example in examples:
        prompt = table.prompt_ids(example)
        rows += [(prompt, answer) for answer in table.answer_ids(example)[:num_answers]]
        keys += table.row_keys(example)[:num_answers]
    reference = None if lookup is None else torch.from_numpy(np.concatenate(lookup(keys)).astype(np.float32))
    answers = torch.arange(len(rows), dtype=torch.int64).reshape(-1, num_answers)
    num_tokens = sum(len(prompt) + len(answer) for prompt, answer in rows)
    return MicroBatch(replace(collate_rows(rows), num_chunks=num_chunks), answers, reference, num_tokens)
