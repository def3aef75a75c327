"""One chunk of token shards: the examples of one record batch, as views of the file that it was mapped from.

Comes in: a record batch. Goes out: lists of ids by place, and row keys. Decision: chunks are never joined, so that no offset
counts the tokens of more than one shard (32 bits are enough) and no process has tokens in memory of its own. Masks are bits
in the file and are unpacked when they are asked for.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa

from raydpo.artifacts.arrow import fixed_keys
from raydpo.errors import IntegrityError
from raydpo.schema.rows import KEY_LENGTH


class ExampleChunk:
    """Examples of one record batch.

    num_answers: of each example; None where there is no example.
    prompt_lengths: [n] int32, tokens.
    answer_lengths: [n, answers] int32, tokens.
    loss_lengths: as answer_lengths, tokens that the loss covers; the same array where no answer has a mask.
    """

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._batch = batch
        answers, keys = batch.column("answer_ids"), batch.column("row_keys")
        outer, self._first_key = _offsets(answers), int(_offsets(keys)[0])
        per_example = np.diff(outer)
        self.num_answers = int(per_example[0]) if len(batch) else None
        if len(batch) and not (
            (per_example == self.num_answers).all() and np.array_equal(np.diff(_offsets(keys)), per_example)
        ):
            raise mixed()
        self._first_answer = int(outer[0])
        self._keys: pa.StringArray = keys.values
        self._prompt_ends, self._prompt_ids = _offsets(batch.column("prompt_ids")), _ids(batch.column("prompt_ids"))
        self._answer_ends, self._answer_ids = _offsets(answers.values), _ids(answers.values)
        self.prompt_lengths = np.diff(self._prompt_ends)
        self.answer_lengths = np.diff(
            self._answer_ends[self._first_answer :][: len(batch) * (self.num_answers or 0) + 1]
        )
        self.answer_lengths = self.answer_lengths.reshape(len(batch), self.num_answers or 0)
        self._masks = batch.column("answer_masks") if "answer_masks" in batch.schema.names else None
        self.loss_lengths = self.answer_lengths if self._masks is None else self._count_covered(self._masks)

    def __len__(self) -> int:
        return len(self._batch)

    def forget_lengths(self) -> None:
        """Give back the lengths, which somebody else keeps."""
        none = np.zeros(0, np.int32)
        self.prompt_lengths = self.answer_lengths = self.loss_lengths = none

    def prompt_ids(self, place: int) -> np.ndarray:
        """Token ids of the prompt, int32; a read-only view."""
        found: np.ndarray = self._prompt_ids[self._prompt_ends[place] : self._prompt_ends[place + 1]]
        return found

    def answer_ids(self, place: int) -> list[np.ndarray]:
        """Token ids of each answer, int32; read-only views."""
        number = self.num_answers or 0
        first = self._first_answer + place * number
        ends = self._answer_ends[first : first + number + 1].tolist()
        return [self._answer_ids[start:end] for start, end in pairwise(ends)]

    def answer_masks(self, place: int) -> list[np.ndarray | None]:
        """Which tokens of each answer the loss covers, bool; None: all of them."""
        if self._masks is None:
            return [None] * (self.num_answers or 0)
        marks = [mask.values.to_numpy(zero_copy_only=False) for mask in self._masks[place].values]
        return [mask if len(mask) else None for mask in marks]

    def row_keys(self, place: int) -> list[str]:
        """Key of each row (prompt with answer)."""
        number = self.num_answers or 0
        return [str(key) for key in self._keys.slice(self._first_key + place * number, number).to_pylist()]

    def key_bytes(self) -> np.ndarray:
        """Keys of all rows: [n, answers] S32, a view of the file. Raises IntegrityError where one has another length."""
        answers = self.num_answers or 0
        found = fixed_keys(self._keys.slice(self._first_key, len(self) * answers))
        if found is None:
            raise IntegrityError(f"token shards hold a row key that is not of {KEY_LENGTH} characters")
        return found.reshape(len(self), answers)

    def source(self, place: int) -> str:
        """Where the example came from: "file:line"."""
        return str(self._batch.column("source")[place].as_py())

    def labels(self) -> np.ndarray:
        """[n] bool."""
        found: np.ndarray = self._batch.column("label").to_numpy(zero_copy_only=False)
        return found

    def weights(self) -> np.ndarray:
        """[n] float32."""
        found: np.ndarray = self._batch.column("weight").to_numpy(zero_copy_only=False)
        return found

    def _count_covered(self, masks: pa.ListArray) -> np.ndarray:
        first = int(_offsets(masks)[0])
        ends = _offsets(masks.values)[first : first + self.answer_lengths.size + 1]
        lengths = np.diff(ends).reshape(self.answer_lengths.shape)
        if not ((lengths == 0) | (lengths == self.answer_lengths)).all():
            raise IntegrityError("token shards hold an answer mask of another length than its answer")
        marks = masks.values.values.slice(int(ends[0]), int(ends[-1] - ends[0])).to_numpy(zero_copy_only=False)
        totals = np.concatenate([[0], np.cumsum(marks, dtype=np.int32)])[ends - ends[0]]
        return np.where(lengths == 0, self.answer_lengths, np.diff(totals).reshape(lengths.shape)).astype(np.int32)


def mixed() -> IntegrityError:
    return IntegrityError("token shards mix examples with different numbers of answers or of row keys")


def _offsets(lists: pa.ListArray) -> np.ndarray:
    """Where each list starts, and the end of the last: int32, a view."""
    found: np.ndarray = lists.offsets.to_numpy()
    return found


def _ids(lists: pa.ListArray) -> np.ndarray:
    found: np.ndarray = lists.values.to_numpy()
    return found
