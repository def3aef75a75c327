"""One optimizer step, and one evaluation: micro-batches in, summed metrics out.

Decision: each micro-batch's loss is a sum divided by the count of the *global* batch, known to every rank before the
first forward; 1 x 8, 8 x 1 and two ranks x 4 are therefore the same update. What else a loss must know of the
whole batch is observed in a pass of its own, without gradient, before the first backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from raydpo.batches import MicroBatch
from raydpo.errors import OutOfMemoryError
from raydpo.metrics import Sums
from raydpo.models.halving import is_out_of_memory
from raydpo.models.logprobs import Extra, SequenceBatch
from raydpo.objectives import ObjectiveInput
from raydpo.objectives.loss import Loss, Observations
from raydpo.train.balance import Balance, Listening
from raydpo.train.entry_sums import EntrySums
from raydpo.train.ranges import waited

if TYPE_CHECKING:
    from raydpo.train.held_out_nats import HeldOutNats

Forward = Callable[[SequenceBatch, Extra], Tensor]
"""`AnswerLogProbs`, or an engine around one: (sequences, what else) -> [N] or [2, N]."""


class Accumulator(Protocol):
    """What a step needs of an engine: a device, a forward, and a backward that adds to the gradient."""

    @property
    def device(self) -> torch.device: ...
    def forward(self, batch: SequenceBatch, extra: Extra = "nothing") -> Tensor: ...
    def routed(self, batch: SequenceBatch, extra: Extra, top_k: int) -> tuple[Tensor, Tensor]: ...
    def backward(self, loss: Tensor) -> None: ...


@dataclass(frozen=True)
class BatchLoss:
    """The loss of one global batch.

    loss: its terms.
    counts: the denominator of each term.
    seen: what was observed of the global batch.
    tie_tolerance_nats: margins of log-ratios within this of 0 are ties.
    balance: what the batch did with the experts of the model, None without a balancing loss.
    """

    loss: Loss
    counts: list[int]
    seen: Observations
    tie_tolerance_nats: float
    balance: Balance | None = None

    def metrics(self, inputs: ObjectiveInput) -> Mapping[str, tuple[Tensor, int | Tensor]]:
        """Sums and counts of these examples of the batch."""
        return self.loss(inputs, self.counts, self.seen).metrics


def read(forward: Forward, batch: MicroBatch, loss: Loss, tie_tolerance_nats: float) -> ObjectiveInput:
    """One micro-batch, scored, as objectives read it."""
    scores = forward(batch.sequences, "collisions" if loss.needs_collisions else "nothing")
    nats, collisions = (scores[0], scores[1].detach()) if loss.needs_collisions else (scores, None)
    return ObjectiveInput(
        policy_nats=nats,
        reference_nats=batch.reference_nats,
        sequences=batch.sequences.sequences,
        answers=batch.answers,
        num_sequences=batch.sequences.num_sequences,
        tie_tolerance_nats=tie_tolerance_nats,
        labels=batch.labels,
        example_weights=None if batch.weights is None else batch.weights.to(nats.dtype),
        log_collisions=collisions,
        positions=batch.positions,
    )


@contextmanager
def fitting(batch: MicroBatch) -> Iterator[None]:
    """Around what a micro-batch takes memory for: says by an OutOfMemoryError of ours when it did not get it."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; the allocator of the CPU has no class of its own
        if not is_out_of_memory(error):
            raise
        tokens, examples = batch.sequences.input_ids.numel(), batch.num_examples
        advice = (
            " One example cannot be split: set train.gradient_checkpointing: true, shard with train.zero_stage: 3, train an "
            "adapter (train.lora) or lower data.max_length."
        )
        raise OutOfMemoryError(
            f"a micro-batch of {tokens:,} tokens ({examples} examples) did not fit into memory "
            f"({str(error).splitlines()[0]}).{'' if examples > 1 else advice}",
            smaller=tokens // 2 if examples > 1 else 0,
        ) from error


@torch.no_grad()
def observe(forward: Forward, loss: Loss, kind: str, micro_batches: Iterable[MicroBatch], seen: Tensor) -> None:
    """Record what a pass of `kind` sees of this rank's share of a global batch. seen: [examples, k] float64, 0 before."""
    for micro_batch in waited(micro_batches):
        batch = micro_batch.to(seen.device)
        with fitting(batch):
            inputs = read(forward, batch, loss, 0.0)  # also for an empty one: under ZeRO-3 forwards are collective
            if batch.num_examples:
                seen[batch.positions] = loss.observe(kind, inputs).double()


def accumulate(engine: Accumulator, batch_loss: BatchLoss, micro_batches: Iterable[MicroBatch]) -> Sums:
    """Forward and backward of this rank's share of a global batch; the engine holds the gradient afterwards."""
    sums = Sums()
    for micro_batch in micro_batches:
        batch = micro_batch.to(engine.device)
        with fitting(batch):
            _forward_and_backward(engine, batch, batch_loss, sums)
    return sums


def _forward_and_backward(engine: Accumulator, batch: MicroBatch, batch_loss: BatchLoss, sums: Sums) -> None:
    balance = batch_loss.balance
    routed = None if balance is None else Listening(engine.routed, balance.experts.top_k)
    inputs = read(routed or engine.forward, batch, batch_loss.loss, batch_loss.tie_tolerance_nats)
    if batch.num_examples:
        output = batch_loss.loss(inputs, batch_loss.counts, batch_loss.seen)
        loss = output.loss_sum
        sums.add(output.metrics)
    else:
        loss = inputs.policy_nats.sum() * 0.0
    if balance is not None and routed is not None:
        loss = loss + balance.share(routed.tally) * bool(batch.num_examples)
    # An infinite loss can have a finite gradient: poison it, so that the engine refuses the step on all ranks. (A
    # constant factor, because where(finite, loss, nan * loss) would give every gradient a 0 * nan.)
    engine.backward(loss * torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan))


@torch.no_grad()
def evaluate_share(
    forward: Forward,
    batch_loss: BatchLoss,
    micro_batch: MicroBatch,
    device: torch.device | str,
    sums: Sums,
    by_entry: EntrySums,
    kept: HeldOutNats | None = None,
) -> int:
    """Add one micro-batch of held-out examples to `sums`, `by_entry` and what is `kept`; returns how many there were."""
    batch = micro_batch.to(device)
    with fitting(batch):
        inputs = read(forward, batch, batch_loss.loss, batch_loss.tie_tolerance_nats)
        if batch.num_examples:
            sums.add(batch_loss.metrics(inputs))
            by_entry.add(inputs, batch_loss.metrics)
            if kept is not None:
                kept.add(inputs)
    return batch.num_examples


def all_reduce(sums: Sums, names: list[str], device: torch.device | str) -> list[float]:
    """Add up `sums` over all ranks in one collective; [sum, count, ...] in the order of `names`."""
    values = [torch.as_tensor(value, dtype=torch.float64, device=device) for value in sums.scalars(names)]
    vector = torch.stack(values)
    torch.distributed.all_reduce(vector)
    return vector.tolist()
