"""One of the ranks that share a stream, where the others are not there: for what its activations cost and what it sends.

Comes in: a model without values. Goes out: hidden states of the stretch of one rank, with everything that its forward and
backward pass make. Decision: the code of a real rank runs but for the exchange itself, which is a tensor of the same size.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from raydpo.models.logprobs import AnswerLogProbs, SequenceBatch
from raydpo.models.sequence_parallel import SequenceParallel


class LoneRank(SequenceParallel):
    """The first of `num_ranks`. sent_bytes: to the others so far, not of backward passes."""

    def __init__(self, num_ranks: int) -> None:
        self.group, self.rank, self.num_ranks, self.sent_bytes = None, 0, num_ranks, 0.0

    def summed(self, values: Tensor) -> Tensor:
        return values

    def _swapped(self, parts: Tensor) -> Tensor:
        self.sent_bytes += parts.numel() * parts.element_size() * (self.num_ranks - 1) / self.num_ranks
        found: Tensor = _Exchanged.apply(parts)  # type: ignore[no-untyped-call]
        return found


class StretchLogProbs(AnswerLogProbs):
    """`AnswerLogProbs` on one of `num_ranks` ranks. Streams are multiples of so many tokens."""

    def __init__(self, model: Any, num_ranks: int) -> None:
        super().__init__(model)
        self.lone = LoneRank(num_ranks)

    def hidden(self, batch: SequenceBatch) -> Tensor:
        """Of the stretch of this rank: [1, T / P, H]. What `part` asks of answers would need values."""
        assert batch.position_ids is not None
        own = slice(0, batch.input_ids.shape[1] // self.lone.num_ranks)
        stretch = replace(batch, input_ids=batch.input_ids[:, own], position_ids=batch.position_ids[:, own])
        found: Tensor = self._read(stretch, self.lone).last_hidden_state
        return found


class _Exchanged(torch.autograd.Function):
    """What stays and what is new of an all-to-all."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor) -> Tensor:
        return torch.empty_like(parts.contiguous())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return torch.empty_like(grads[0].contiguous())
