"""`raydpo evaluate`: held-out metrics of any model folder, one share a rank, no optimizer and no collectives.

Decision: every rank yields its own sums and the caller adds them up, so nothing of DeepSpeed has to start.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from raydpo.config import OBJECTIVES
from raydpo.metrics import Sums
from raydpo.models.load import load_model
from raydpo.models.logprobs import AnswerLogProbs, check_head
from raydpo.objectives import make_objective
from raydpo.train.spec import TrainSpec
from raydpo.train.step import apply_objective
from raydpo.train.trainer import NAMES, Rank, make_feed, open_lookup


@dataclass(frozen=True)
class Share:
    """Sums of one rank so far, [sum, count, ...] in the order of `trainer.NAMES`, over `examples` examples."""

    examples: int
    vector: tuple[float, ...]
    done: bool = False


@torch.no_grad()
def run(rank: Rank, spec: TrainSpec) -> Iterator[Share]:
    """Evaluate `spec.model` on the held-out split. Yields progress; the last value of a rank is `done`."""
    torch.set_flush_denormal(True)
    device = "cuda" if rank.use_gpu else "cpu"
    model = load_model(spec.model.here(), spec.dtype, spec.config.model.attention).to(device)
    scoring = AnswerLogProbs(model)
    check_head(scoring)
    objective = make_objective(spec.config.objective.name, spec.config.objective.parameters)
    assert OBJECTIVES[spec.config.objective.name].needs_reference == (spec.reference is not None)
    feed, sums, examples = make_feed(rank, spec, "eval", open_lookup(spec)), Sums(), 0
    for micro_batch in (batch for block in feed.blocks() for batch in feed.batches(block)):
        if not micro_batch.num_examples:
            continue
        batch = micro_batch.to(device)
        sums.add(apply_objective(objective, scoring(batch.sequences), batch, spec.tie_tolerance_nats).metrics)
        examples += batch.num_examples
        yield Share(examples, ())
    yield Share(examples, tuple(sums.vector(NAMES)), done=True)
