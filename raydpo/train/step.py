"""One optimizer step, and one evaluation: micro-batches in, summed metrics out.

Decision: each micro-batch's loss is a sum divided by the count of the *global* batch, known to every rank before the
first forward; 1 x 8, 8 x 1 and two ranks x 4 are therefore the same update.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from raydpo.batches import MicroBatch
from raydpo.metrics import Sums
from raydpo.objectives import Objective, ObjectiveInput, ObjectiveOutput
from raydpo.train.engine import Engine


def apply_objective(
    objective: Objective, nats: Tensor, batch: MicroBatch, tie_tolerance_nats: float
) -> ObjectiveOutput:
    """The objective on one micro-batch's log-probs."""
    return objective(
        ObjectiveInput(
            policy_nats=nats,
            reference_nats=batch.reference_nats,
            sequences=batch.sequences.sequences,
            answers=batch.answers,
            num_sequences=batch.sequences.num_sequences,
            tie_tolerance_nats=tie_tolerance_nats,
        )
    )


def accumulate(
    engine: Engine,
    objective: Objective,
    micro_batches: Iterable[MicroBatch],
    global_count: int,
    tie_tolerance_nats: float,
) -> Sums:
    """Forward and backward of this rank's share of a global batch; the engine holds the gradient afterwards.

    global_count: pairs or answer tokens of the global batch over all ranks, in the objective's unit.
    """
    sums = Sums()
    for micro_batch in micro_batches:
        batch = micro_batch.to(engine.device)
        output = apply_objective(objective, engine.forward(batch.sequences), batch, tie_tolerance_nats)
        weight = 1.0 / global_count if batch.num_examples else 0.0
        loss = output.loss_sum * weight
        # An infinite loss can have a finite gradient: poison it, so that the engine refuses the step on all ranks. (A
        # constant factor, because where(finite, loss, nan * loss) would give every gradient a 0 * nan.)
        engine.backward(loss * torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan))
        if batch.num_examples:
            sums.add(output.metrics)
    return sums


@torch.no_grad()
def evaluate_share(
    engine: Engine,
    objective: Objective,
    micro_batches: Iterable[MicroBatch],
    tie_tolerance_nats: float,
    sums: Sums,
) -> None:
    """Add this rank's share of a block of held-out examples to `sums`."""
    for micro_batch in micro_batches:
        batch = micro_batch.to(engine.device)
        nats = engine.forward(batch.sequences)
        if batch.num_examples:
            sums.add(apply_objective(objective, nats, batch, tie_tolerance_nats).metrics)


def all_reduce(sums: Sums, names: list[str], device: torch.device | str) -> list[float]:
    """Add up `sums` over all ranks in one collective; [sum, count, ...] in the order of `names`."""
    vector = torch.tensor(sums.vector(names), dtype=torch.float64, device=device)
    torch.distributed.all_reduce(vector)
    return vector.tolist()
