"""Micro-batches of an evaluation, and what reads each: a model that is there whole, or one whose layers are read in passes.

Comes in: micro-batches in order. Goes out: each with a forward that is its own. Decision: of a streamed model a pass takes
micro-batches until their tokens reach `tokens_per_pass`, so that weights are read seldom; they are cut as ever, and values are
those of a whole model, bit for bit. Price: hidden states of all tokens of a pass are there at one time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raydpo.batches import MicroBatch
from raydpo.models.halving import in_halves
from raydpo.models.logprobs import AnswerLogProbs
from raydpo.models.together import passes
from raydpo.train.step import Forward, fitting

if TYPE_CHECKING:
    from raydpo.models.layer_stream import LayerStream


def with_forwards(
    scoring: AnswerLogProbs,
    stream: LayerStream | None,
    micro_batches: Iterable[MicroBatch],
    device: torch.device | str,
    tokens_per_pass: int,
) -> Iterator[tuple[MicroBatch, Forward]]:
    """Each micro-batch with what reads it. A pass that does not fit into memory is done in two; raises OutOfMemoryError for a
    micro-batch that does not fit alone."""
    if stream is None:
        for micro_batch in micro_batches:
            yield micro_batch, scoring
        return
    for batches in passes(micro_batches, lambda batch: batch.sequences.input_ids.numel(), tokens_per_pass):
        for batch, hidden in _read(scoring, stream, batches, device):
            yield batch, partial(scoring.read_off, hidden)


def _read(
    scoring: AnswerLogProbs, stream: LayerStream, batches: list[MicroBatch], device: torch.device | str
) -> Iterator[tuple[MicroBatch, Tensor]]:
    """Each of `batches` with what the head reads, in one pass, or in halves where memory is short."""

    def hidden(start: int, stop: int) -> list[tuple[MicroBatch, Tensor]]:
        some = batches[start:stop]
        with torch.no_grad(), fitting(some[0]) if len(some) == 1 else nullcontext():
            found = stream.run([partial(scoring.hidden, batch.sequences.to(device)) for batch in some])
        return list(zip(some, found, strict=True))

    for part in in_halves(0, len(batches), hidden, lambda start, stop, reason: None):
        yield from part
