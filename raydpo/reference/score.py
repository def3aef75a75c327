"""One reference worker: a frozen model that turns `ShardWork` into committed shards of per-token log-probs.

Comes in: token shards on storage that every node sees. Goes out: Arrow shards in the cache, and how much was done.
Decision: rows of a shard are scored in the order of the plan, in batches cut by tokens, so that a value depends on its
shard alone and not on who scored it or what else was scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raydpo.artifacts import CacheIdentity, ReferenceCache
from raydpo.artifacts.claim import claimed
from raydpo.artifacts.elsewhere import bring
from raydpo.models.agreement import Noise
from raydpo.models.layout import check_lengths, choose_layout
from raydpo.models.logprobs import AnswerLogProbs, check_head
from raydpo.models.resolve import ResolvedModel
from raydpo.models.rounding import rounded_otherwise
from raydpo.models.varlen import unserved
from raydpo.reference.forward import RowList, score_rows
from raydpo.reference.held import hold
from raydpo.reference.plan import ShardWork
from raydpo.reference.shard_rows import ShardRows
from raydpo.reference.streamed import PassScoring
from raydpo.reference.way import Weights


@dataclass(frozen=True)
class ScorerSpec:
    """How a reference worker is made.

    model, dtype, attention: the reference.
    data: folder of token shards.
    cache_dir, identity: where values go.
    tokens_per_batch: token budget of a forward.
    use_gpu: whether it has a GPU.
    weights: how it holds the model, see `raydpo.reference.way`. num_sharing: workers that share the memory of its device.
    tokens_per_pass: of a streamed model, tokens that go through it side by side.
    """

    model: ResolvedModel
    dtype: str
    attention: str
    data: Path
    cache_dir: Path
    identity: CacheIdentity
    tokens_per_batch: int
    use_gpu: bool = False
    weights: Weights = "whole"
    num_sharing: int = 1
    tokens_per_pass: int = 65536


@dataclass(frozen=True)
class ShardDone:
    """A shard was scored.

    name: of the shard.
    rows, tokens: rows and answer tokens in the loss that were scored.
    forwards: forwards of the model for them.
    nats: values of a probe's rows, which are not written.
    noise_nats: of a probe, what rounding does to a token's log-prob, measured.
    did_not_fit: of the first batch of this worker that was done in halves, a sentence; said once.
    is_left: another run has the shard, or had it: nothing was scored here.
    passes, weight_bytes: of a streamed model, how often its layers were gone through since the shard before, and how many bytes
        of weights were read for that.
    said: how this worker holds the model, where that is worth a word, and what its attention falls back to; each said once.
    came: of a worker that stands, how its model came for these rows: "in place", "anew", or "" for the one that it had.
    """

    name: str
    rows: int
    tokens: int
    forwards: int
    nats: tuple[np.ndarray, ...] = ()
    noise_nats: float = 0.0
    did_not_fit: str = ""
    is_left: bool = False
    passes: int = 0
    weight_bytes: int = 0
    said: tuple[str, ...] = ()
    came: str = ""


def scorer_of_groups(spec: ScorerSpec) -> Callable[[Sequence[ShardWork]], tuple[ShardDone, ...]]:
    """What a worker does with a group of shards."""
    return Scorer(spec).score_group


class Scorer:
    """Loads the reference once; then `scorer(work)` scores one shard and commits it, unless it is a probe."""

    def __init__(self, spec: ScorerSpec) -> None:
        torch.set_flush_denormal(True)
        self.spec = spec
        self.device = "cuda" if spec.use_gpu else "cpu"
        for folder in spec.model.folders:
            bring(folder)
        held = hold(
            spec.model,
            spec.dtype,
            spec.attention,
            weights=spec.weights,
            num_sharing=spec.num_sharing,
            device=self.device,
        )
        self._said, self._stream = held.said, held.stream
        self.scoring = AnswerLogProbs(held.model)
        check_head(self.scoring, held.together)
        self.layout, _ = choose_layout(held.model, spec.attention, held.together)
        self.cache = ReferenceCache(spec.cache_dir, spec.identity)
        self.rows = ShardRows(spec.data)
        self._did_not_fit: list[str] = []
        self._counted = (0, 0)
        self._has_said = False
        self._num_told = 0

    @property
    def is_whole(self) -> bool:
        """Whether the whole model is held, not a layer at a time."""
        return self._stream is None

    def turn_to(self, spec: ScorerSpec) -> None:
        """Score other rows from now on, into another cache, with the model that is there."""
        self.spec, self.cache, self.rows = spec, ReferenceCache(spec.cache_dir, spec.identity), ShardRows(spec.data)

    def __call__(self, work: ShardWork) -> ShardDone:
        """Raises IntegrityError when a value is not a log-probability."""
        return self.score_group([work])[0]

    def score_group(self, works: Sequence[ShardWork]) -> tuple[ShardDone, ...]:
        """The same for several shards. A streamed model goes through all of them in as few passes as it can."""
        done: dict[str, ShardDone] = {}
        with ExitStack() as claims:
            ours = [work for work in works if self._is_ours(work, claims)]
            for work, (values, forwards) in zip(ours, self._scored(ours), strict=True):
                done[work.name] = self._committed(work, values, forwards)
        return tuple(done.get(work.name) or ShardDone(work.name, 0, 0, 0, is_left=True) for work in works)

    def _is_ours(self, work: ShardWork, claims: ExitStack) -> bool:
        """Whether to score it here; it is claimed until `claims` closes."""
        if work.is_probe or not work.is_claimed:
            return True
        return claims.enter_context(claimed(self.cache.claims, work.name)) and not self.cache.has_shard(work.name)

    def _committed(self, work: ShardWork, values: list[np.ndarray], forwards: int) -> ShardDone:
        nats: tuple[np.ndarray, ...] = ()
        noise = 0.0
        if work.is_probe:
            with rounded_otherwise(self.scoring.model):
                nats, noise = tuple(values), Noise.between(values, self.score(work)[0]).token_nats
        else:
            self.cache.write_shard(work.name, list(work.keys), values)
        news, (passes, weight_bytes) = self._news(), self._read_since()
        more: dict[str, Any] = {"passes": passes, "weight_bytes": weight_bytes, "said": self._said_now()}
        return ShardDone(work.name, len(values), sum(map(len, values)), forwards, nats, noise, news, **more)

    def _said_now(self) -> tuple[str, ...]:
        """What was not said yet; of attention it is known after the first forward."""
        fresh, fallbacks = (self._said,) if self._said else (), unserved()
        told, self._num_told, self._said = self._num_told, len(fallbacks), ""
        return (*fresh, *fallbacks[told:])

    def _read_since(self) -> tuple[int, int]:
        """Passes and bytes of weights since the last call."""
        if self._stream is None:
            return 0, 0
        now = self._stream.passes, self._stream.weights.files.bytes_read
        before, self._counted = self._counted, now
        return now[0] - before[0], now[1] - before[1]

    def _news(self) -> str:
        """What did not fit, once in the life of this worker."""
        if self._has_said or not self._did_not_fit:
            return ""
        self._has_said = True
        return self._did_not_fit[0]

    def _too_much(self, num_tokens: int, num_rows: int, reason: str) -> None:
        self._did_not_fit.append(
            f"a batch of {num_tokens:,} tokens ({num_rows} rows) did not fit into memory ({reason})"
        )

    def score(self, work: ShardWork) -> tuple[list[np.ndarray], int]:
        """Per-token log-probs of every row, float32 nats, and the number of forwards. Commits nothing."""
        return next(self._scored([work]))

    def _scored(self, works: Sequence[ShardWork]) -> Iterator[tuple[list[np.ndarray], int]]:
        """What `score` returns, for each of `works`, as soon as it is there."""
        check_lengths(self.scoring.model, max((length for work in works for length in work.lengths), default=0))
        lists = [self.rows.of(work, self.spec.tokens_per_batch) for work in works]
        found: Iterator[tuple[list[np.ndarray], int]] = map(self._whole, lists)
        if self._stream is not None:
            passes = PassScoring(self._stream, self.layout, self.device, self.spec.tokens_per_pass)
            found = passes.score(lists, self._too_much)
        for work, (values, forwards) in zip(works, found, strict=True):
            self.rows.check(work, values)
            yield values, forwards

    def _whole(self, each: RowList) -> tuple[list[np.ndarray], int]:
        budget, masks = each.tokens_per_batch, each.masks
        return score_rows(self.scoring, each.rows, budget, self.layout, self.device, masks, self._too_much)
