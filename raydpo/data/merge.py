"""What becomes of good rows: duplicates, draws of a mixture, splits and repeats, decided a batch at a time.

Comes in: batches of rows in the order of the files. Goes out: the picked rows in the store, and counts in the tally.
Decision: what is kept in memory of a row is 40 bytes of numbers (and, where duplicates are left out, its mark), never its
ids; the order of batches alone decides, so that it does not matter who encoded them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np

from raydpo.data.mixture import Portion
from raydpo.data.report import Tally
from raydpo.data.row_batch import RowBatch
from raydpo.data.shown_rows import RowViewer
from raydpo.data.store import Store
from raydpo.data.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Picked:
    """Some rows of a batch.

    places: [n] int64, in the batch.
    is_eval: [n] bool, whether the row goes to eval.
    marks: what data.deduplicate compares, of each row; empty where nothing is compared.
    """

    batch: RowBatch
    places: np.ndarray
    is_eval: np.ndarray
    marks: list[bytes]

    def __len__(self) -> int:
        return len(self.places)

    def take(self, chosen: np.ndarray) -> Picked:
        """Some of them. chosen: [m] int64."""
        marks = [self.marks[place] for place in chosen.tolist()] if self.marks else []
        return Picked(self.batch, self.places[chosen], self.is_eval[chosen], marks)

    def kept(self) -> Picked:
        """The same without the rest of the batch, unless that takes no memory."""
        if self.batch.is_mapped:
            return self
        return Picked(self.batch.take(self.places), np.arange(len(self)), self.is_eval, self.marks)


class RowMerge:
    """Puts rows into the splits. store: where they are written, None for nowhere. viewer: is shown every used row."""

    def __init__(
        self,
        tally: Tally,
        store: Store | None,
        tokenizer: TextTokenizer,
        *,
        by: Literal["none", "prompt", "pair"],
        threshold: int,
        is_unpaired: bool,
        viewer: RowViewer | None = None,
    ) -> None:
        self._tally, self._store, self._tokenizer, self._viewer = tally, store, tokenizer, viewer
        self._by, self._threshold, self._is_unpaired = by, threshold, is_unpaired
        self._seen: set[bytes] = set()

    def use(self, portion: Portion, split: str, batches: Iterator[RowBatch]) -> None:
        """All rows of an entry of the data."""
        counts, times = self._tally.of_entry(split, portion.name), portion.times()
        for picked in portion.sample(self._fresh(portion, split, batches)):
            numbers = np.fromiter(islice(times, len(picked)), np.int64, len(picked))
            counts["used"] += int((numbers > 0).sum())
            self._seen.update(mark for mark, number in zip(picked.marks, numbers, strict=False) if number)
            numbers[picked.is_eval] = np.minimum(numbers[picked.is_eval], 1)
            for target in ("train", "eval"):
                chosen = np.flatnonzero((picked.is_eval == (target == "eval")) & (numbers > 0))
                if len(chosen):
                    self._use(target, picked.batch, picked.places[chosen], numbers[chosen])
                    counts[target] += self._tally.examples_per_line * int(numbers[chosen].sum())
                    counts["repeated"] += int(numbers[chosen].sum()) - len(chosen)
            self._show(picked.take(np.flatnonzero(numbers)))
        counts["not_drawn"] = counts.pop("fresh", 0) - counts.pop("used", 0)

    def _fresh(self, portion: Portion, split: str, batches: Iterator[RowBatch]) -> Iterator[Picked]:
        """Rows of an entry that data.deduplicate leaves."""
        own, counts = set[bytes](), self._tally.of_entry(split, portion.name)
        for batch in batches:
            is_eval = batch.prompt_hashes < self._threshold if split == "train" else np.ones(len(batch), bool)
            places, marks = np.arange(len(batch)), batch.marks(self._by, is_eval)
            if marks:
                fresh = []
                for place, mark in enumerate(marks):
                    if mark not in self._seen and mark not in own:
                        own.add(mark)
                        fresh.append(place)
                places, marks = np.array(fresh, np.int64), [marks[place] for place in fresh]
            counts["deduplicated"] += len(batch) - len(places)
            counts["fresh"] += len(places)
            yield Picked(batch, places, is_eval[places], marks)

    def _use(self, target: str, batch: RowBatch, places: np.ndarray, numbers: np.ndarray) -> None:
        """Write rows, each `numbers` times, and count them; a repeat is the same row once more. places, numbers: [m] int64."""
        if self._store is not None:
            rows = np.repeat(places, numbers)
            self._store.add(target, batch.examples(rows, is_unpaired=self._is_unpaired))
        self._tally.use(
            target,
            batch.prompt_hashes[places],
            (batch.prompt_lengths[places], batch.answer_lengths[places].max(axis=1, initial=0)),
            batch.digests[places],
        )
        self._tally.repeat(target, int(numbers.sum()) - len(numbers))
        self._tally.desirable[target] += int(numbers[batch.labels[places]].sum())

    def _show(self, picked: Picked) -> None:
        if self._viewer is None:
            return
        for place, is_eval in zip(picked.places.tolist(), picked.is_eval.tolist(), strict=True):
            source, row, _, beside = picked.batch.rows[place]
            if beside.example and beside.text:
                target = "eval" if is_eval else "train"
                self._viewer.look(target, source, self._tokenizer, beside.example, beside.text, row)
