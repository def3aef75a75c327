"""One reference worker: a frozen model that turns `ShardWork` into committed shards of per-token log-probs.

Comes in: token shards on storage that every node sees. Goes out: Arrow shards in the cache, and how much was done.
Decision: rows of a shard are scored in the order of the plan, in batches cut by tokens, so that a value depends on its
shard alone and not on who scored it or what else was scored.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from raydpo.artifacts import CacheIdentity, ExampleTable, ReferenceCache
from raydpo.artifacts.claim import claimed
from raydpo.artifacts.elsewhere import bring
from raydpo.errors import IntegrityError
from raydpo.models.agreement import Noise
from raydpo.models.layout import check_lengths, choose_layout
from raydpo.models.logprobs import AnswerLogProbs, check_head
from raydpo.models.pretrained import load_model
from raydpo.models.resolve import ResolvedModel
from raydpo.models.rounding import rounded_otherwise
from raydpo.reference.forward import score_rows
from raydpo.reference.plan import ShardWork


@dataclass(frozen=True)
class ScorerSpec:
    """How a reference worker is made.

    model, dtype, attention: the reference.
    data: folder of token shards.
    cache_dir, identity: where values go.
    tokens_per_batch: token budget of a forward.
    use_gpu: whether it has a GPU.
    """

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
    """A shard was scored.

    name: of the shard.
    rows, tokens: rows and answer tokens in the loss that were scored.
    forwards: forwards of the model for them.
    nats: values of a probe's rows, which are not written.
    noise_nats: of a probe, what rounding does to a token's log-prob, measured.
    did_not_fit: of the first batch of this worker that was done in halves, a sentence; said once.
    is_left: another run has the shard, or had it: nothing was scored here.
    """

    name: str
    rows: int
    tokens: int
    forwards: int
    nats: tuple[np.ndarray, ...] = ()
    noise_nats: float = 0.0
    did_not_fit: str = ""
    is_left: bool = False


class Scorer:
    """Loads the reference once; then `scorer(work)` scores one shard and commits it, unless it is a probe."""

    def __init__(self, spec: ScorerSpec) -> None:
        torch.set_flush_denormal(True)
        self.spec = spec
        self.device = "cuda" if spec.use_gpu else "cpu"
        for folder in spec.model.folders:
            bring(folder)
        model = load_model(spec.model, spec.dtype, spec.attention).to(self.device)
        self.scoring = AnswerLogProbs(model.requires_grad_(False))
        check_head(self.scoring)
        self.layout, _ = choose_layout(model, spec.attention)
        self.cache = ReferenceCache(spec.cache_dir, spec.identity)
        self._tables: dict[str, ExampleTable] = {}
        self._did_not_fit: list[str] = []
        self._has_said = False

    def __call__(self, work: ShardWork) -> ShardDone:
        """Raises IntegrityError when a value is not a log-probability."""
        if work.is_probe or not work.is_claimed:
            return self._done(work)
        with claimed(self.cache.claims, work.name) as is_ours:
            if not is_ours or self.cache.has_shard(work.name):
                return ShardDone(work.name, 0, 0, 0, is_left=True)
            return self._done(work)

    def _done(self, work: ShardWork) -> ShardDone:
        values, forwards = self.score(work)
        nats: tuple[np.ndarray, ...] = ()
        noise = 0.0
        if work.is_probe:
            with rounded_otherwise(self.scoring.model):
                nats, noise = tuple(values), Noise.between(values, self.score(work)[0]).token_nats
        else:
            self.cache.write_shard(work.name, list(work.keys), values)
        return ShardDone(work.name, len(values), sum(map(len, values)), forwards, nats, noise, self._news())

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
        check_lengths(self.scoring.model, max(work.lengths, default=0))
        rows = [self._row(place) for place in work.places]
        masks = [self._table(split).answer_masks(example)[answer] for split, example, answer in work.places]
        budget = max(1, int(self.spec.tokens_per_batch * work.budget_share))
        values, forwards = score_rows(self.scoring, rows, budget, self.layout, self.device, masks, self._too_much)
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
