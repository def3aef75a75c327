"""One reference worker: a frozen model that turns `ShardWork` into committed shards of per-token log-probs.

Comes in: token shards on storage that every node sees. Goes out: Arrow shards in the cache, and how much was done.
Decision: rows of a shard are scored in the order of the plan, in batches cut by padded tokens, so that a value depends
on its shard alone and not on who scored it or what else was scored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from raydpo.artifacts import CacheIdentity, ExampleTable, ReferenceCache
from raydpo.batches import lay_out
from raydpo.errors import IntegrityError
from raydpo.models.layout import choose_layout
from raydpo.models.load import load_model
from raydpo.models.logprobs import AnswerLogProbs, check_head
from raydpo.models.resolve import ResolvedModel
from raydpo.reference.plan import ShardWork


@dataclass(frozen=True)
class ScorerSpec:
    """model, dtype, attention: the reference. data: token shards. cache_dir, identity: where values go."""

    model: ResolvedModel
    dtype: str
    attention: str
    data: Path
    cache_dir: Path
    identity: CacheIdentity
    tokens_per_batch: int
    use_gpu: bool = False


@dataclass(frozen=True)
class ShardDone:
    """rows and answer tokens written, model forwards made for them."""

    name: str
    rows: int
    tokens: int
    forwards: int


class Scorer:
    """Loads the reference once; then `scorer(work)` scores and commits one shard."""

    def __init__(self, spec: ScorerSpec) -> None:
        torch.set_flush_denormal(True)
        self.spec = spec
        self.device = "cuda" if spec.use_gpu else "cpu"
        model = load_model(spec.model.here(), spec.dtype, spec.attention).to(self.device)
        self.scoring = AnswerLogProbs(model.requires_grad_(False))
        check_head(self.scoring)
        self.layout, _ = choose_layout(model, spec.attention)
        self.cache = ReferenceCache(spec.cache_dir, spec.identity)
        self._tables: dict[str, ExampleTable] = {}

    def __call__(self, work: ShardWork) -> ShardDone:
        """Score and commit. Raises IntegrityError when a value is not a log-probability."""
        values, forwards = self.score(work)
        self.cache.write_shard(work.name, list(work.keys), values)
        return ShardDone(work.name, len(values), sum(map(len, values)), forwards)

    @torch.no_grad()
    def score(self, work: ShardWork) -> tuple[list[np.ndarray], int]:
        """Per-token log-probs of every row, float32 nats, and the number of forwards. Commits nothing."""
        values: list[np.ndarray] = []
        forwards = 0
        is_padded = self.layout == "padded"
        for start, stop in cut_batches(work.lengths, self.spec.tokens_per_batch, is_padded=is_padded):
            rows = [self._row(place) for place in work.places[start:stop]]
            nats = self.scoring(lay_out(rows, self.layout).to(self.device)).float().cpu().numpy()
            forwards += 1
            values += np.split(nats, np.cumsum([len(answer) for _, answer in rows])[:-1])
        for place, nats in zip(work.places, values, strict=True):
            if not (np.isfinite(nats).all() and (nats <= 0).all()):
                raise IntegrityError(
                    f"the reference gives {nats[~(np.isfinite(nats) & (nats <= 0))][0]} nats for a token of "
                    f"{self._table(place[0]).source(place[1])}; a log-probability is finite and at most 0. The shard was not "
                    "written. Score in float32 (model.dtype), or look at the weights of the reference."
                )
        return values, forwards

    def _row(self, place: tuple[str, int, int]) -> tuple[np.ndarray, np.ndarray]:
        split, example, answer = place
        table = self._table(split)
        return table.prompt_ids(example), table.answer_ids(example)[answer]

    def _table(self, split: str) -> ExampleTable:
        if split not in self._tables:
            self._tables[split] = ExampleTable.open(self.spec.data, split)
        return self._tables[split]


class Rescorer(Scorer):
    """Scores rows again and commits nothing: `scorer(work)` gives the values themselves."""

    def __call__(self, work: ShardWork) -> list[np.ndarray]:  # type: ignore[override]
        return self.score(work)[0]


def cut_batches(
    lengths: tuple[int, ...], tokens_per_batch: int, *, is_padded: bool = True
) -> Iterator[tuple[int, int]]:
    """Cut rows into [start, stop) batches of at most `tokens_per_batch` tokens, padded to the longest or one by one.

    A row longer than the budget gets a batch of its own.
    """
    start = 0
    for stop in range(1, len(lengths) + 1):
        more = lengths[start : stop + 1]
        is_full = (max(more) * len(more) if is_padded else sum(more)) > tokens_per_batch
        if stop == len(lengths) or is_full:
            yield start, stop
            start = stop
