"""The reference scored by the trainers themselves, before their first step: no second model is ever loaded.

Comes in: a trainer whose policy starts as the reference, on every rank. Goes out: shards in the cache of the reference, as its
workers would have written them. Decision: ranks take whole shards in turns and cut them as a worker does, so that a value
depends on its shard alone; a fresh adapter stays on, which adds exact zeros. Under ZeRO 3 forwards are collective: whoever has
fewer makes idle ones. Price: shards of a turn take as long as the longest, and a batch that does not fit is an error, for its
halves would leave the other ranks waiting.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from raydpo.artifacts import CacheIdentity, ReferenceCache
from raydpo.batches import lay_out
from raydpo.batches.micro_batches import loss_ends
from raydpo.config import Config
from raydpo.errors import OutOfMemoryError
from raydpo.models.halving import is_out_of_memory
from raydpo.models.layout import Layout, check_lengths
from raydpo.models.logprobs import SequenceBatch, count_chunks
from raydpo.reference.forward import RowList, cut
from raydpo.reference.plan import ShardWork, plan_shards, wanted_rows
from raydpo.reference.shard_rows import ShardRows
from raydpo.schema.pulse import beat
from raydpo.schema.rank_events import RowsScored, TrainEvent
from raydpo.train.trainer import Trainer, check_equal


def hindrance(config: Config, *, starts_at_reference: bool) -> str:
    """Why trainers cannot score the reference of a run, as a clause; empty where they can."""
    train = config.train
    if not starts_at_reference:
        return "the policy starts from other weights than the reference's (reference.model)"
    if (train.gpus_per_worker > 0) != (config.reference.gpus_per_worker > 0):
        return "reference.gpus_per_worker and train.gpus_per_worker say CPU for one of both, and the cache tells them apart"
    if train.lora is not None and train.lora.dora:
        return "the norms of train.lora.dora round a policy away from its reference"
    return ""


@dataclass(frozen=True)
class RowsFirst:
    """The rows that ranks score: called with the trainer of a rank, it yields what was done.

    data: folder of token shards. splits, num_answers: of them. cache_dir, identity: where values go.
    rows_per_shard, tokens_per_batch: how they are cut.
    """

    data: Path
    splits: tuple[str, ...]
    num_answers: int
    cache_dir: Path
    identity: CacheIdentity
    rows_per_shard: int
    tokens_per_batch: int

    def __call__(self, trainer: Trainer) -> Iterator[TrainEvent]:
        """Score what the cache lacks. Collective. Raises IntegrityError, OutOfMemoryError, ConfigError as `check_lengths`."""
        cache = ReferenceCache(self.cache_dir, self.identity).open()
        works = plan_shards(wanted_rows(self.data, self.splits, self.num_answers), cache, self.rows_per_shard)
        device, num_ranks = trainer.engine.device, trainer.rank.num_ranks
        check_equal(device, "the rows to score", works.num_rows)  # none writes before all have looked
        rows = ShardRows(self.data)
        for start in range(0, len(works), num_ranks):
            turn = works[start : start + num_ranks]
            check_lengths(trainer.engine.engine.module.model, max(length for work in turn for length in work.lengths))
            forwards = _take_turn(trainer, turn, [rows.of(work, self.tokens_per_batch) for work in turn], rows, cache)
            yield RowsScored(sum(len(work.keys) for work in turn), forwards)
        check_equal(device, "the rows that were scored", works.num_rows)  # all have written
        yield RowsScored(0, 0, is_last=True)


def _take_turn(
    trainer: Trainer, turn: Sequence[ShardWork], lists: Sequence[RowList], rows: ShardRows, cache: ReferenceCache
) -> int:
    """A shard for each rank, as far as there are; forwards of all. Collective."""
    layout, mine = trainer.train.layout, trainer.rank.rank
    batches = [list(cut(each.rows, each.tokens_per_batch, layout)) for each in lists]
    chunks = [[_chunks(each, batch, trainer) for batch in cuts] for each, cuts in zip(lists, batches, strict=True)]
    values: list[np.ndarray] = []
    with torch.no_grad():
        for place in range(max(map(len, batches))):
            calls = [of_rank[place] if place < len(of_rank) else 1 for of_rank in chunks]
            batch = batches[mine][place] if mine < len(batches) and place < len(batches[mine]) else None
            if batch is None:
                trainer.engine.forward(_idle(layout, max(calls) - 1).to(trainer.engine.device))
                continue
            values += _scored(trainer, lists[mine], batch, max(calls) - calls[mine])
    if mine < len(turn):
        rows.check(turn[mine], values)
        cache.write_shard(turn[mine].name, list(turn[mine].keys), values)
    return sum(map(len, batches))


def _scored(trainer: Trainer, each: RowList, batch: tuple[int, int], num_idle_chunks: int) -> list[np.ndarray]:
    start, stop = batch
    rows, masks = each.rows[start:stop], each.masks[start:stop]
    sequences = replace(lay_out(rows, trainer.train.layout, masks), num_idle_chunks=num_idle_chunks)
    try:
        nats = trainer.engine.forward(sequences.to(trainer.engine.device)).float().cpu().numpy()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"a batch of {sequences.input_ids.numel():,} tokens of the reference did not fit beside what trains "
            f"({(str(error) or 'MemoryError').splitlines()[0]}). What was committed before is kept. Lower "
            "reference.tokens_per_batch, or set reference.weights: streamed."
        ) from error
    beat()
    return np.split(nats, loss_ends(rows, masks))


def _chunks(each: RowList, batch: tuple[int, int], trainer: Trainer) -> int:
    """Calls of the head for a batch."""
    start, stop = batch
    answers = zip(each.rows[start:stop], each.masks[start:stop], strict=True)
    num_tokens = sum(len(answer) if mask is None else int(mask.sum()) for (_, answer), mask in answers)
    return count_chunks(num_tokens, trainer.spec.chunk_tokens)


def _idle(layout: Layout, num_idle_chunks: int) -> SequenceBatch:
    """A forward of one token that counts nothing."""
    token = np.zeros(1, np.int32)
    return replace(lay_out([(token, token)], layout), num_idle_chunks=num_idle_chunks)
