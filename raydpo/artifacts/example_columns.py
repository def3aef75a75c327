"""What is known of every example of a split without its tokens: lengths, labels and weights, one small file beside the shards.

Comes in: chunks, as they are written or opened. Goes out: arrays over the whole split. Decision: these alone decide order and
batches, so that whoever needs some examples opens the shards of these and no others; the file is mapped, and a node has one
copy of it. Price: 17 bytes an example of two answers are stored twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from raydpo.artifacts.arrow import ShardRecord, read_shard, write_shard
from raydpo.artifacts.example_chunk import ExampleChunk, mixed


@dataclass(frozen=True)
class ExampleColumns:
    """Of all examples of a split.

    prompt_lengths: [n] int32, tokens.
    answer_lengths, loss_lengths: [n, answers] int32; the same array where no answer has a mask.
    labels: [n] bool.
    weights: [n] float32.
    """

    prompt_lengths: np.ndarray
    answer_lengths: np.ndarray
    loss_lengths: np.ndarray
    labels: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, chunk: ExampleChunk) -> ExampleColumns:
        """Of the examples of one chunk, some of them views of it."""
        lengths = (chunk.prompt_lengths, chunk.answer_lengths, chunk.loss_lengths)
        return cls(*lengths, chunk.labels(), chunk.weights())

    def agrees(self, chunk: ExampleChunk, start: int) -> bool:
        """Whether `chunk` has the lengths that are said of the examples from `start` on."""
        rows = slice(start, start + len(chunk))
        return (
            np.array_equal(self.prompt_lengths[rows], chunk.prompt_lengths)
            and np.array_equal(self.answer_lengths[rows], chunk.answer_lengths)
            and np.array_equal(self.loss_lengths[rows], chunk.loss_lengths)
        )


def joined(parts: Sequence[ExampleColumns]) -> ExampleColumns:
    """A copy of all parts, one after the other. Raises IntegrityError for different numbers of answers."""
    if not parts:
        none = np.zeros((0, 2), np.int32)
        return ExampleColumns(np.zeros(0, np.int32), none, none, np.zeros(0, bool), np.zeros(0, np.float32))
    if len({part.answer_lengths.shape[1] for part in parts}) > 1:
        raise mixed()
    answers = np.concatenate([part.answer_lengths for part in parts])
    is_masked = any(part.loss_lengths is not part.answer_lengths for part in parts)
    return ExampleColumns(
        np.concatenate([part.prompt_lengths for part in parts]),
        answers,
        np.concatenate([part.loss_lengths for part in parts]) if is_masked else answers,
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.weights for part in parts]),
    )


def write_columns(path: Path, columns: ExampleColumns) -> ShardRecord:
    """Write the file durably."""
    arrays = {
        "prompt_length": pa.array(columns.prompt_lengths),
        "answer_lengths": _rows_of(columns.answer_lengths),
        "label": pa.array(columns.labels.view(np.uint8)),
        "weight": pa.array(columns.weights),
    }
    if columns.loss_lengths is not columns.answer_lengths:
        arrays["loss_lengths"] = _rows_of(columns.loss_lengths)
    schema = _schema(columns.answer_lengths.shape[1], "loss_lengths" in arrays)
    return write_shard(path, pa.table(arrays, schema=schema))


def read_columns(path: Path, record: ShardRecord, num_answers: int) -> ExampleColumns:
    """Verify and map the file. Raises IntegrityError when it is not what was committed."""
    table = read_shard(path, record, _schema(num_answers, False), _schema(num_answers, True))

    def column(name: str) -> np.ndarray:
        (chunk,) = table[name].chunks
        found: np.ndarray = (chunk.flatten() if pa.types.is_fixed_size_list(chunk.type) else chunk).to_numpy()
        return found

    answers = column("answer_lengths").reshape(-1, num_answers)
    has_own = "loss_lengths" in table.schema.names
    return ExampleColumns(
        column("prompt_length"),
        answers,
        column("loss_lengths").reshape(-1, num_answers) if has_own else answers,
        column("label").view(bool),
        column("weight"),
    )


def _schema(num_answers: int, has_loss_lengths: bool) -> pa.Schema:
    lengths = pa.list_(pa.field("item", pa.int32(), nullable=False), num_answers)
    columns = [
        ("prompt_length", pa.int32()),
        ("answer_lengths", lengths),
        ("label", pa.uint8()),
        ("weight", pa.float32()),
    ]
    columns += [("loss_lengths", lengths)] if has_loss_lengths else []
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns])


def _rows_of(lengths: np.ndarray) -> pa.FixedSizeListArray:
    kind = pa.list_(pa.field("item", pa.int32(), nullable=False), lengths.shape[1])
    return pa.FixedSizeListArray.from_arrays(pa.array(lengths.reshape(-1)), type=kind)
