"""`raydpo evaluate`: held-out metrics of any model folder, one share a rank, no optimizer and no collectives.

Decision: every rank yields its own sums and the caller adds them up, so nothing of DeepSpeed has to start. The price:
where the loss looks at the whole split (kto, bco, aot), every rank does so by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch

from raydpo.metrics import Sums
from raydpo.models.layout import check_lengths, choose_layout
from raydpo.models.logprobs import AnswerLogProbs, check_head
from raydpo.models.work import work_of
from raydpo.objectives.loss import Loss
from raydpo.train.entry_sums import EntrySums
from raydpo.train.run_feeds import Rank, longest_row, make_feed, open_lookup
from raydpo.train.side_by_side import with_forwards
from raydpo.train.spec import TrainSpec
from raydpo.train.step import BatchLoss, evaluate_share, observe
from raydpo.train.trainer import bring_models, names_of

if TYPE_CHECKING:
    from raydpo.reference.held import Hold


@dataclass(frozen=True)
class Share:
    """What one rank has of an evaluation so far.

    examples: how many it has evaluated.
    vector: their sums, [sum, count, ...] in the order of `trainer.names_of`; then those of each entry.
    entries: names of the entries, none where there is only one.
    done: whether its share is finished.
    said: how the model is held, where that is worth a word.
    passes, weight_bytes: of a streamed model, how often its layers were gone through, and bytes of weights that were read.
    """

    examples: int
    vector: tuple[float, ...]
    entries: tuple[str, ...] = ()
    done: bool = False
    said: str = ""
    passes: int = 0
    weight_bytes: int = 0


@torch.no_grad()
def run(rank: Rank, spec: TrainSpec, hold: Hold) -> Iterator[Share]:
    """Evaluate the model that `hold` gives on the held-out split. Yields progress; the last value of a rank is `done`."""
    torch.set_flush_denormal(True)
    device = "cuda" if rank.use_gpu else "cpu"
    bring_models(spec.model)
    held = hold(device)
    yield Share(0, (), said=held.said)
    model, scoring = held.model, AnswerLogProbs(held.model)
    check_head(scoring, held.together)
    layout, _ = choose_layout(model, spec.config.model.attention, held.together)
    loss = Loss(spec.config.objective.terms)
    assert loss.needs_reference == (spec.reference is not None)
    feed, sums, examples = make_feed(rank, spec, "eval", open_lookup(spec), layout, work_of(model)), Sums(), 0
    check_lengths(model, longest_row(feed))
    tokens_per_pass = spec.config.reference.stream_tokens
    read = partial(with_forwards, scoring, held.stream, device=device, tokens_per_pass=tokens_per_pass)
    seen, every = {}, replace(feed, rank=0, num_ranks=1)
    for kind in loss.batch_kinds:
        seen[kind] = loss.unseen(kind, len(feed.table), device)
        for micro_batch, forward in read(chain.from_iterable(every.blocks(feed.columns(kind)))):
            observe(forward, loss, kind, [micro_batch], seen[kind])
            yield Share(0, ())
    by_entry = EntrySums(feed.entries)
    counts = feed.counts(np.arange(len(feed.table)), loss)
    batch_loss = BatchLoss(loss, counts, seen, spec.tie_tolerance_nats)
    filled = (batch for batch in chain.from_iterable(feed.blocks()) if batch.num_examples)
    for micro_batch, forward in read(filled):
        examples += evaluate_share(forward, batch_loss, micro_batch, device, sums, by_entry)
        yield Share(examples, ())
    names = names_of(spec)
    sums.check(names)
    vector = sums.vector(names) + by_entry.sums.vector(by_entry.names(names))
    passes, weight_bytes = held.has_read
    yield Share(examples, tuple(vector), by_entry.entries, done=True, passes=passes, weight_bytes=weight_bytes)
