"""Encoded rows as columns: what lists of ids become before anything is decided about them.

Comes in: encoded rows, or the part that they were committed in. Goes out: what duplicates, splits and counts are decided by,
and the examples of a split. Decision: rows are moved by Arrow, a batch at a time, so that nobody who merges parts has a Python
object for each of them; ids of a part stay in its mapped file until they are written.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa

from raydpo.artifacts.example_chunk import ExampleChunk
from raydpo.data.row_encoder import EncodedRow
from raydpo.schema.rows import KEY_LENGTH, MASKED_EXAMPLES

PART = MASKED_EXAMPLES.append(pa.field("prompt_hash", pa.uint64(), nullable=False))
_NESTED = ("answer_ids", "row_keys", "answer_masks")
_KEY_WORDS = KEY_LENGTH // 8


def columns_of(rows: Sequence[EncodedRow]) -> pa.RecordBatch:
    """Columns of `PART`: [n]."""
    examples = [example for _, example, _, _ in rows]
    answers = _offsets([len(example.answer_ids) for example in examples])
    ids = [ids for example in examples for ids in example.answer_ids]
    masks = [mask or [] for example in examples for mask in example.masks]
    keys = pa.array([key for _, _, keys, _ in rows for key in keys], pa.string())
    return pa.record_batch(
        [
            _int_lists([example.prompt_ids for example in examples]),
            pa.ListArray.from_arrays(answers, _int_lists(ids)),
            pa.ListArray.from_arrays(_offsets([len(keys) for _, _, keys, _ in rows]), keys),
            pa.array([place for place, _, _, _ in rows], pa.string()),
            pa.array([beside.label for *_, beside in rows], pa.bool_()),
            pa.array([beside.factor for *_, beside in rows], pa.float32()),
            pa.ListArray.from_arrays(answers, _bool_lists(masks)),
            pa.array([example.prompt_hash for example in examples], pa.uint64()),
        ],
        schema=PART,
    )


class RowBatch:
    """Rows as columns.

    columns: of `PART`.
    rows: the same rows with their texts, for who looks at them; empty: nobody does.
    is_mapped: the columns are in a file and take no memory of this process.
    prompt_lengths, answer_lengths: [n] and [n, answers] int32, tokens.
    """

    def __init__(self, columns: pa.RecordBatch, rows: Sequence[EncodedRow] = (), *, is_mapped: bool = False) -> None:
        self.columns, self.rows, self.is_mapped = columns, rows, is_mapped
        self._chunk = ExampleChunk(columns)
        self.prompt_lengths, self.answer_lengths = self._chunk.prompt_lengths, self._chunk.answer_lengths

    def __len__(self) -> int:
        return len(self.columns)

    @cached_property
    def labels(self) -> np.ndarray:
        """[n] bool."""
        return self._chunk.labels()

    @cached_property
    def prompt_hashes(self) -> np.ndarray:
        """[n] uint64."""
        found: np.ndarray = self.columns.column("prompt_hash").to_numpy()
        return found

    @property
    def digests(self) -> np.ndarray:
        """128 bits of the row keys of each row: [n, 2] uint64."""
        words = self._key_text().view(np.uint64)
        found: np.ndarray = words @ _factors(words.shape[1])
        return found

    def marks(self, by: Literal["none", "prompt", "pair"], is_eval: np.ndarray) -> list[bytes]:
        """What data.deduplicate compares, of each row; empty where nothing is compared. is_eval: [n] bool, its split."""
        if by == "none":
            return []
        own = [self.prompt_hashes[:, None].view(np.uint8)]
        if by == "pair":
            own = [self.labels[:, None].view(np.uint8), self._key_text()]
        table = np.concatenate([is_eval[:, None].view(np.uint8), *own], axis=1)
        text, width = table.tobytes(), table.shape[1]
        return [text[start : start + width] for start in range(0, len(text), width)]

    def _key_text(self) -> np.ndarray:
        keys = np.ascontiguousarray(self._chunk.key_bytes())
        return keys.view(np.uint8).reshape(len(self), -1)

    def take(self, places: np.ndarray) -> RowBatch:
        """Some of the rows, in memory of their own. places: [m] int64."""
        rows = [self.rows[place] for place in places.tolist()] if self.rows else ()
        return RowBatch(self.columns.take(pa.array(places)), rows)

    def examples(self, places: np.ndarray, *, is_unpaired: bool) -> pa.RecordBatch:
        """Examples at `places` [m] int64, columns of `MASKED_EXAMPLES`. is_unpaired: each answer is one, desirable or not."""
        found = self.columns.select(MASKED_EXAMPLES.names)
        if not np.array_equal(places, np.arange(len(self))):
            found = found.take(pa.array(places))
        return _each_answer(found) if is_unpaired else found


def _each_answer(pairs: pa.RecordBatch) -> pa.RecordBatch:
    """The two answers of each row, as a desirable and an undesirable one: [2n]."""
    number = len(pairs)
    one_each = pa.array(np.arange(2 * number + 1, dtype=np.int32))
    twice = pa.array(np.repeat(np.arange(number), 2))
    found = {name: pa.ListArray.from_arrays(one_each, pairs.column(name).flatten()) for name in _NESTED}
    found |= {name: pairs.column(name).take(twice) for name in ("prompt_ids", "source", "weight")}
    found["label"] = pa.array(np.tile([True, False], number))
    return pa.record_batch([found[name] for name in MASKED_EXAMPLES.names], schema=MASKED_EXAMPLES)


def _factors(num_words: int) -> np.ndarray:
    """Odd numbers, the same ones in every process: [words, 2] uint64."""
    drawn = np.random.default_rng(_KEY_WORDS).integers(1 << 63, size=(num_words, 2), dtype=np.uint64)
    return drawn * np.uint64(2) + np.uint64(1)


def _offsets(lengths: Sequence[int]) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def _int_lists(lists: Sequence[Sequence[int]]) -> pa.ListArray:
    values = array("i")
    for each in lists:
        values.extend(each)
    return pa.ListArray.from_arrays(_offsets([len(each) for each in lists]), pa.array(np.asarray(values, np.int32)))


def _bool_lists(lists: Sequence[Sequence[bool]]) -> pa.ListArray:
    values = np.fromiter((mark for each in lists for mark in each), bool)
    return pa.ListArray.from_arrays(_offsets([len(each) for each in lists]), pa.array(values))
