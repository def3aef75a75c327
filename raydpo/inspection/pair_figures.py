"""What is counted of every used pair: lengths, how alike its answers are, and whether the same answers stand elsewhere.

Comes in: rows as the preparation reads them. Goes out: columns of numbers, of each split. Decision: 56 bytes a pair are held
and no text, so that a data set of millions fits; the price is a 64-bit hash in place of an answer.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from raydpo.data.encode import Encoded
from raydpo.data.messages import Example
from raydpo.data.shown_rows import RowViewer
from raydpo.data.template import Rendered
from raydpo.data.tokenizer import TextTokenizer


@dataclass(frozen=True)
class PairColumns:
    """One number for each used pair of a split, [n] each.

    prompt_tokens, chosen_tokens, rejected_tokens: int64.
    overlap: float64 in [0, 1]; of the words of both answers (of their tokens where rows came as ids), the share that has a
        partner in the other one (Dice).
    prompts, chosen, rejected: uint64 hashes of ids.
    """

    prompt_tokens: np.ndarray
    chosen_tokens: np.ndarray
    rejected_tokens: np.ndarray
    overlap: np.ndarray
    prompts: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray

    def __len__(self) -> int:
        return len(self.overlap)


class PairFigures(RowViewer):
    """Is shown every used row; rows of a single answer are counted and not kept."""

    def __init__(self) -> None:
        super().__init__(0)
        self.restart()

    def restart(self) -> None:
        self._lengths = {split: array("q") for split in ("train", "eval")}
        self._overlap = {split: array("d") for split in ("train", "eval")}
        self._hashes = {split: array("Q") for split in ("train", "eval")}
        self.num_single = 0

    def look(
        self, split: str, place: str, tokenizer: TextTokenizer, example: Example, text: Rendered, row: Encoded
    ) -> None:
        if len(row.answer_ids) != 2:
            self.num_single += 1
            return
        chosen, rejected = row.answer_ids
        self._lengths[split].extend((len(row.prompt_ids), len(chosen), len(rejected)))
        self._overlap[split].append(_overlap(*(_words(text, row, index) for index in (0, 1))))
        self._hashes[split].extend((row.prompt_hash, _hash(chosen), _hash(rejected)))

    def columns(self, split: str) -> PairColumns:
        """What was counted of `split`."""
        lengths = np.asarray(self._lengths[split], np.int64).reshape(-1, 3)
        hashes = np.asarray(self._hashes[split], np.uint64).reshape(-1, 3)
        prompt, chosen, rejected = lengths.T
        return PairColumns(prompt, chosen, rejected, np.asarray(self._overlap[split], np.float64), *hashes.T)


def _words(text: Rendered, row: Encoded, index: int) -> Sequence[str] | Sequence[int]:
    return row.answer_ids[index] if text.tokens is not None else text.answers[index].split()


def _overlap(first: Sequence[Any], second: Sequence[Any]) -> float:
    common = (Counter(first) & Counter(second)).total()
    return 2 * common / max(1, len(first) + len(second))


def _hash(ids: Sequence[int]) -> int:
    return int.from_bytes(blake2b(array("q", ids).tobytes(), digest_size=8).digest(), "little")
