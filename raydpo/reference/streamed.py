"""The reference pass of a model that is never there whole: batches go through its layers side by side, pass by pass.

Comes in: rows, and a model whose layers are read when they run. Goes out: values, bit for bit those of `forward.score_rows`,
because batches are cut as there and run through the same code. Decision: a pass takes batches until its tokens reach
`tokens_per_pass`, over as many lists of rows as there are, so that weights are read seldom. Price: hidden states of all
tokens of a pass are there at one time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from raydpo.batches import lay_out
from raydpo.batches.micro_batches import loss_ends
from raydpo.models.halving import in_halves
from raydpo.models.layer_stream import LayerStream
from raydpo.models.layout import Layout
from raydpo.models.logprobs import AnswerLogProbs, SequenceBatch
from raydpo.models.together import passes
from raydpo.reference.forward import RowList, TooMuch, cut, no_room_for_row


@dataclass(frozen=True, eq=False)
class _Batch:
    """Rows [start, stop) of list `number`, as the model reads them."""

    number: int
    start: int
    stop: int
    sequences: SequenceBatch


class PassScoring:
    """`AnswerLogProbs` of a streamed model over lists of rows.

    too_much: called with tokens and rows of what did not fit and the reason: a pass, which is done in two, or a batch.
    """

    def __init__(self, stream: LayerStream, layout: Layout, device: torch.device | str, tokens_per_pass: int) -> None:
        self._scoring, self._stream, self._layout, self._device = AnswerLogProbs(stream.model), stream, layout, device
        self._tokens_per_pass = tokens_per_pass

    @torch.no_grad()
    def score(self, lists: Sequence[RowList], too_much: TooMuch) -> Iterator[tuple[list[np.ndarray], int]]:
        """For each list its values, as of `score_rows`, and the number of forwards, as soon as its last batch is done."""
        values: list[list[np.ndarray]] = [[] for _ in lists]
        forwards, done = [0] * len(lists), 0
        every = self._batches(lists)
        for batches in passes(every, lambda batch: batch.sequences.input_ids.numel(), self._tokens_per_pass):
            for batch, found, parts in self._scored(lists, batches, too_much):
                values[batch.number] += found
                forwards[batch.number] += parts
            while done < len(lists) and len(values[done]) == len(lists[done].rows):
                yield values[done], forwards[done]
                done += 1

    def _batches(self, lists: Sequence[RowList]) -> Iterator[_Batch]:
        """Of all lists, one after the other."""
        for number, each in enumerate(lists):
            for start, stop in cut(each.rows, each.tokens_per_batch, self._layout):
                yield self._batch(lists, number, start, stop)

    def _batch(self, lists: Sequence[RowList], number: int, start: int, stop: int) -> _Batch:
        each = lists[number]
        return _Batch(number, start, stop, lay_out(each.rows[start:stop], self._layout, each.masks[start:stop]))

    def _scored(
        self, lists: Sequence[RowList], batches: Sequence[_Batch], too_much: TooMuch
    ) -> Iterator[tuple[_Batch, list[np.ndarray], int]]:
        """(batch, values of its rows, forwards) of each of `batches`, in one pass, or in halves where memory is short."""

        def together(first: int, last: int) -> list[tuple[_Batch, list[np.ndarray], int]]:
            if last - first == 1:
                return [self._alone(lists, batches[first], too_much)]
            return self._in_one_pass(lists, batches[first:last])

        def note(first: int, last: int, reason: str) -> None:
            some = batches[first:last]
            if len(some) > 1:
                num_rows = sum(batch.stop - batch.start for batch in some)
                too_much(sum(batch.sequences.input_ids.numel() for batch in some), num_rows, reason)

        for part in in_halves(0, len(batches), together, note):
            yield from part

    def _alone(
        self, lists: Sequence[RowList], batch: _Batch, too_much: TooMuch
    ) -> tuple[_Batch, list[np.ndarray], int]:
        """A batch in a pass of its own; where it does not fit, its halves."""

        def part(start: int, stop: int) -> list[np.ndarray]:
            ((_, found, _),) = self._in_one_pass(lists, [self._batch(lists, batch.number, start, stop)])
            return found

        def note(start: int, stop: int, reason: str) -> None:
            num_tokens = self._batch(lists, batch.number, start, stop).sequences.input_ids.numel()
            if stop - start == 1:
                raise no_room_for_row(num_tokens, reason)
            too_much(num_tokens, stop - start, reason)

        parts = list(in_halves(batch.start, batch.stop, part, note))
        return batch, [nats for found in parts for nats in found], len(parts)

    def _in_one_pass(
        self, lists: Sequence[RowList], batches: Sequence[_Batch]
    ) -> list[tuple[_Batch, list[np.ndarray], int]]:
        moved = [batch.sequences.to(self._device) for batch in batches]
        hidden = self._stream.run([partial(self._scoring.hidden, sequences) for sequences in moved])
        found = []
        for batch, sequences, of_all in zip(batches, moved, hidden, strict=True):
            nats = self._scoring.read_off(of_all, sequences).float().cpu().numpy()
            each = lists[batch.number]
            ends = loss_ends(each.rows[batch.start : batch.stop], each.masks[batch.start : batch.stop])
            found.append((batch, np.split(nats, ends), 1))
        return found
