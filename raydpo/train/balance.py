"""The balancing loss of the experts over a global batch, in parts that micro-batches and ranks can differentiate alone.

Decision: the loss is a product of two means over the global batch, so a pass without gradient first counts which experts its
tokens choose; with these fixed, the loss is a sum over tokens and any layout of the batch gives one loss and one gradient.
The price is a second forward. Choices have no gradient in any case.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from raydpo.batches import MicroBatch
from raydpo.models.logprobs import Extra, SequenceBatch
from raydpo.models.routing import balancing_loss


class Routed(Protocol):
    """A forward that also says what the routers did: ([N] or [2, N] nats, [2, E] of `routing.tally`)."""

    def __call__(self, batch: SequenceBatch, extra: Extra, top_k: int) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Experts:
    """coefficient: of the balancing loss. top_k: experts that a token asks."""

    coefficient: float
    top_k: int


@dataclass(frozen=True)
class Balance:
    """What one global batch did with its experts, over all ranks.

    experts: see `Experts`.
    sums: [2, E] float64, of `routing.tally`.
    """

    experts: Experts
    sums: Tensor

    @property
    def loss(self) -> Tensor:
        """The balancing loss of the global batch, without its coefficient."""
        return self._loss(self.sums[0])

    def share(self, tally: Tensor) -> Tensor:
        """What a micro-batch adds to the loss to go backward from, with its coefficient."""
        return self.experts.coefficient * self._loss(tally[0])

    def _loss(self, probabilities_E: Tensor) -> Tensor:
        return balancing_loss(probabilities_E, self.sums[1].to(probabilities_E), self.experts.top_k)


class Listening:
    """A `Forward` that keeps the tally of the routers of its last batch."""

    def __init__(self, forward: Routed, top_k: int) -> None:
        self._forward, self._top_k = forward, top_k
        self.tally = torch.zeros(0)

    def __call__(self, batch: SequenceBatch, extra: Extra = "nothing") -> Tensor:
        nats, self.tally = self._forward(batch, extra, self._top_k)
        return nats


@torch.no_grad()
def observe_experts(
    forward: Routed, experts: Experts, micro_batches: Iterable[MicroBatch], device: torch.device | str
) -> Tensor:
    """[2, E] float64 sums of this rank's share of a global batch; ranks add them up."""
    found: Tensor | None = None
    for micro_batch in micro_batches:
        batch = micro_batch.to(device)
        _, tally = forward(batch.sequences, "nothing", experts.top_k)  # also of an empty one: forwards are collective
        tally = tally.double() * bool(batch.num_examples)
        found = tally if found is None else found + tally
    assert found is not None, "a rank has at least one micro-batch"
    return found
