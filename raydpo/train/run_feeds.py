"""The splits of a run as one rank reads them.

Comes in: a `TrainSpec`, and how the model reads sequences. Goes out: a `Feed` for each split. Decision: what a split is depends
on the run alone, so that a model which stands gets other data without being touched.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from raydpo.artifacts import ExampleTable
from raydpo.artifacts.cache_reader import CacheReader
from raydpo.batches.micro_batches import Lookup
from raydpo.models.layout import Layout, check_lengths
from raydpo.models.work import TOKENS, Work
from raydpo.train.feed import Feed
from raydpo.train.spec import TrainSpec


class Rank(Protocol):
    """What a trainer must know of its place in the gang."""

    @property
    def rank(self) -> int: ...
    @property
    def num_ranks(self) -> int: ...
    @property
    def use_gpu(self) -> bool: ...


def split_feeds(rank: Rank, spec: TrainSpec, model: Any, layout: Layout, work: Work) -> tuple[Feed, Feed]:
    """The training and the held-out split as this rank reads them. Raises ConfigError for rows that `model` cannot read."""
    lookup, num_sharing = open_lookup(spec), spec.config.train.sequence_parallel_size
    training, held_out = (
        replace(
            make_feed(rank, spec, split, lookup, layout, work),
            is_sharded=spec.config.train.zero_stage == 3,
            rank=rank.rank // num_sharing,
            num_ranks=rank.num_ranks // num_sharing,
        )
        for split in ("train", "eval")
    )
    for feed in (training, held_out):
        check_lengths(model, longest_row(feed))
    return training, held_out


def open_lookup(spec: TrainSpec) -> Lookup | None:
    """Row keys -> cached reference log-probs; None for an objective without a reference."""
    if spec.reference is None:
        return None
    cache_dir, identity = spec.reference
    return CacheReader(cache_dir / identity.digest).lookup


def longest_row(feed: Feed) -> int:
    """Tokens of the longest prompt with its answer, over the whole split."""
    return int(feed.row_lengths(np.arange(len(feed.table))).max(initial=0))


def make_feed(
    rank: Rank, spec: TrainSpec, split: str, lookup: Lookup | None, layout: Layout, work: Work = TOKENS
) -> Feed:
    """One split of the run's token shards, seen from one rank."""
    train = spec.config.train
    table = ExampleTable.open(spec.data, split)
    return Feed(
        table=table,
        entries=table.entries,
        rank=rank.rank,
        num_ranks=rank.num_ranks,
        num_answers=spec.config.objective.row.num_answers,
        tokens_per_microbatch=train.tokens_per_microbatch,
        lookup=lookup,
        chunk_tokens=spec.chunk_tokens,
        layout=layout,
        work=work,
    )
