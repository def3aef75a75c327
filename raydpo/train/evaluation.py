"""`raydpo evaluate`: held-out metrics of any model folder, one share a rank, no optimizer and no collectives.

Decision: every rank yields its own sums and the caller adds them up, so nothing of DeepSpeed has to start. The price:
where the loss looks at the whole split (kto, bco, aot), every rank does so by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from raydpo.metrics import Sums
from raydpo.models.layout import check_lengths, choose_layout
from raydpo.models.logprobs import AnswerLogProbs, check_head
from raydpo.models.pretrained import load_model
from raydpo.models.work import work_of
from raydpo.objectives.loss import Loss
from raydpo.train.entry_sums import EntrySums
from raydpo.train.spec import TrainSpec
from raydpo.train.step import BatchLoss, evaluate_share, observe
from raydpo.train.trainer import Rank, bring_models, longest_row, make_feed, names_of, open_lookup


@dataclass(frozen=True)
class Share:
    """What one rank has of an evaluation so far.

    examples: how many it has evaluated.
    vector: their sums, [sum, count, ...] in the order of `trainer.names_of`; then those of each entry.
    entries: names of the entries, none where there is only one.
    done: whether its share is finished.
    """

    examples: int
    vector: tuple[float, ...]
    entries: tuple[str, ...] = ()
    done: bool = False


@torch.no_grad()
def run(rank: Rank, spec: TrainSpec) -> Iterator[Share]:
    """Evaluate `spec.model` on the held-out split. Yields progress; the last value of a rank is `done`."""
    torch.set_flush_denormal(True)
    device = "cuda" if rank.use_gpu else "cpu"
    bring_models(spec.model)
    model = load_model(spec.model, spec.dtype, spec.config.model.attention).to(device)
    scoring = AnswerLogProbs(model)
    check_head(scoring)
    layout, _ = choose_layout(model, spec.config.model.attention)
    loss = Loss(spec.config.objective.terms)
    assert loss.needs_reference == (spec.reference is not None)
    feed, sums, examples = make_feed(rank, spec, "eval", open_lookup(spec), layout, work_of(model)), Sums(), 0
    check_lengths(model, longest_row(feed))
    seen, every = {}, replace(feed, rank=0, num_ranks=1)
    for kind in loss.batch_kinds:
        seen[kind] = loss.unseen(kind, len(feed.table), device)
        for block in every.blocks(feed.columns(kind)):
            observe(scoring, loss, kind, block, seen[kind])
            yield Share(0, ())
    by_entry = EntrySums(feed.entries)
    counts = feed.counts(np.arange(len(feed.table)), loss)
    batch_loss = BatchLoss(loss, counts, seen, spec.tie_tolerance_nats)
    for micro_batch in (batch for block in feed.blocks() for batch in block):
        if micro_batch.num_examples:
            examples += evaluate_share(scoring, batch_loss, micro_batch, device, sums, by_entry)
            yield Share(examples, ())
    names = names_of(spec)
    sums.check(names)
    vector = sums.vector(names) + by_entry.sums.vector(by_entry.names(names))
    yield Share(examples, tuple(vector), by_entry.entries, done=True)
