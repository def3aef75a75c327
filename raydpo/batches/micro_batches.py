"""Token rows -> the tensors of one micro-batch.

Packed, all rows are one stream, and rows of one prompt that follow each other share their common beginning; padded,
every architecture sees an ordinary batch, right-padded with plain position ids.
Decision: where answers start is an index, not a mask, so that only answer positions reach the head. A mask of an answer
takes positions out of that index and nothing else: what the model reads, and what rows share, does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from raydpo.models.layout import Layout
from raydpo.models.logprobs import SequenceBatch

Rows = Sequence[tuple[np.ndarray, np.ndarray]]
"""(prompt ids, answer ids) of each row."""
Masks = Sequence[np.ndarray | None]
"""Of each row, which tokens of its answer the loss covers, bool; None: all of them."""
Lookup = Callable[[list[str]], list[np.ndarray]]
"""Row keys -> reference log-probs of their answer tokens in the loss, float32 nats."""


class Examples(Protocol):
    """What batches read of a table of examples; `raydpo.artifacts.ExampleTable` says what each is."""

    prompt_lengths: np.ndarray
    answer_lengths: np.ndarray
    loss_lengths: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    is_weighted: bool

    def __len__(self) -> int: ...
    def prompt_ids(self, example: int) -> np.ndarray: ...
    def answer_ids(self, example: int) -> list[np.ndarray]: ...
    def answer_masks(self, example: int) -> list[np.ndarray | None]: ...
    def row_keys(self, example: int) -> list[str]: ...
    def source(self, example: int) -> str: ...


@dataclass(frozen=True)
class MicroBatch:
    """What one forward of the trainer needs.

    sequences: the sequences to score.
    answers: [E, A] int64, the sequence of each answer.
    reference_nats: [N] float32, None without a reference.
    labels: [E] bool.
    weights: [E] float32, None when all are 1.
    positions: [E] int64, places of the examples in the global batch.
    """

    sequences: SequenceBatch
    answers: Tensor
    reference_nats: Tensor | None
    labels: Tensor
    weights: Tensor | None
    positions: Tensor

    @property
    def num_examples(self) -> int:
        return self.answers.shape[0]

    def to(self, device: torch.device | str) -> MicroBatch:
        moved: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {name: None if value is None else value.to(device) for name, value in moved.items()}
        return replace(self, **changed)


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
        num_sequences=len(rows),
    )


def lay_out(rows: Rows, layout: Layout, masks: Masks = ()) -> SequenceBatch:
    """Rows as the model reads them; no masks: all answer tokens are scored."""
    batch = pack_rows(rows) if layout == "packed" else collate_rows(rows)
    if all(mask is None for mask in masks):
        return batch
    covered = [
        np.ones(len(answer), bool) if mask is None else mask for (_, answer), mask in zip(rows, masks, strict=True)
    ]
    kept = torch.from_numpy(np.concatenate(covered))
    return replace(
        batch, predictors=batch.predictors[kept], targets=batch.targets[kept], sequences=batch.sequences[kept]
    )


def loss_ends(rows: Rows, masks: Masks = ()) -> np.ndarray:
    """Where the scored tokens of each row but the last end among those of all rows, for `np.split`: [rows - 1] int64."""
    masks = masks or [None] * len(rows)
    counts = [len(answer) if mask is None else mask.sum() for (_, answer), mask in zip(rows, masks, strict=True)]
    return np.cumsum(counts, dtype=np.int64)[:-1]


def pack_rows(rows: Rows) -> SequenceBatch:
    """One stream of all rows; consecutive rows with the same prompt share their longest common prefix.

    Equal rows among them are read once: their answers are the same places of the stream. A row's prompt must hold at least
    one token, which predicts the first answer token.
    """
    ids, positions, segments, readers = [], [], [], []
    predictors, targets, sequences = [], [], []
    length = 0
    for first, group in _groups(rows):
        whole = [np.concatenate([prompt, answer]) for prompt, answer in group]
        distinct = {sequence.tobytes(): sequence for sequence in whole}
        shared, start = _common_prefix(list(distinct.values())), length
        places: dict[bytes, np.ndarray] = {}
        for key, sequence in distinct.items():
            skipped = shared if places else 0
            segments.append((length, length + len(sequence) - skipped, start, start + skipped))
            within = np.arange(len(sequence))
            readers.append(sum(other.tobytes() == key for other in whole))
            places[key] = np.where(within < skipped, start + within, length + within - skipped)
            ids.append(sequence[skipped:])
            positions.append(within[skipped:])
            length += len(sequence) - skipped
        for number, (sequence, (prompt, answer)) in enumerate(zip(whole, group, strict=True)):
            predictors.append(places[sequence.tobytes()][len(prompt) - 1 : -1])
            targets.append(answer)
            sequences.append(np.full(len(answer), first + number))
    return SequenceBatch(
        input_ids=_tensor(ids)[None],
        attention_mask=None,
        position_ids=_tensor(positions)[None],
        segments=tuple(segments),
        readers=tuple(readers),
        predictors=_tensor(predictors),
        targets=_tensor(targets),
        sequences=_tensor(sequences),
        num_sequences=len(rows),
    )


def _groups(rows: Rows) -> Iterator[tuple[int, Rows]]:
    """Consecutive rows with the same prompt, with the number of the first."""
    first = 0
    for last in range(1, len(rows) + 1):
        if last == len(rows) or not np.array_equal(rows[last][0], rows[first][0]):
            yield first, rows[first:last]
            first = last


def _common_prefix(sequences: Sequence[np.ndarray]) -> int:
    """Tokens that all sequences begin with; at least one of each stays its own."""
    shortest = min(map(len, sequences)) - 1
    equal = np.all([one[:shortest] == sequences[0][:shortest] for one in sequences], axis=0)
    return shortest if equal.all() else int(np.argmin(equal))


def _tensor(parts: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def collate(
    table: Examples,
    examples: Sequence[int],
    columns: Sequence[int],
    lookup: Lookup | None,
    num_chunks: int = 1,
    positions: Sequence[int] | None = None,
    layout: Layout = "padded",
) -> MicroBatch:
    """The micro-batch of `examples`. An empty list gives a dummy of one token whose loss counts nothing.

    columns: which answers of an example to take.
    num_chunks: calls of the head that every rank makes for its micro-batch.
    positions: places of the examples in the global batch, default their order here.
    """
    chosen = np.asarray(examples, dtype=np.int64)
    places = torch.tensor(range(len(examples)) if positions is None else positions, dtype=torch.int64)
    weights = table.weights[chosen]
    marks: dict[str, Any] = {
        "labels": torch.from_numpy(table.labels[chosen]),
        "weights": torch.from_numpy(weights) if table.is_weighted else None,
        "positions": places,
    }
    if not examples:
        dummy = replace(lay_out([(np.zeros(1, np.int32), np.zeros(1, np.int32))], layout), num_chunks=num_chunks)
        nats = None if lookup is None else torch.zeros(1)
        return MicroBatch(dummy, torch.zeros((0, len(columns)), dtype=torch.int64), nats, **marks)
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    masks: list[np.ndarray | None] = []
    keys = []
    for example in examples:
        prompt, answers, row_keys = table.prompt_ids(example), table.answer_ids(example), table.row_keys(example)
        rows += [(prompt, answers[column]) for column in columns]
        keys += [row_keys[column] for column in columns]
        marks_of = table.answer_masks(example)
        masks += [marks_of[column] for column in columns]
    reference = None if lookup is None else torch.from_numpy(np.concatenate(lookup(keys)).astype(np.float32))
    answers_EA = torch.arange(len(rows), dtype=torch.int64).reshape(-1, len(columns))
    batch = replace(lay_out(rows, layout, masks), num_chunks=num_chunks)
    return MicroBatch(batch, answers_EA, reference, **marks)
