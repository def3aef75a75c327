"""A reference worker that stands: it keeps the model that it loaded, and takes in another one where the next rows ask for it.

Comes in: batches of shards, each with the `ScorerSpec` that they are scored by. Goes out: what a `Scorer` gives. Decision: the
spec travels with the rows, so that a worker in a dead one's place needs nothing else to hold the right weights; which model is
held is told by the digests of its weights, not by its folder. Price: a moment with two copies of a model that is exchanged;
where the memory is not there, the old one goes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from raydpo.artifacts.elsewhere import bring
from raydpo.models.layout import choose_layout
from raydpo.models.logprobs import AnswerLogProbs, check_head
from raydpo.models.pretrained import load_model
from raydpo.models.refill import is_alike, refill
from raydpo.reference.plan import ShardWork
from raydpo.reference.score import Scorer, ScorerSpec, ShardDone
from raydpo.reference.way import USED_SHARE, free_bytes, whole_bytes


@dataclass(frozen=True)
class Batch:
    """works: shards. spec: what they are scored by, and where they go."""

    works: tuple[ShardWork, ...]
    spec: ScorerSpec = field(repr=False)

    def lighter(self) -> Batch:
        """The same with less memory."""
        return replace(self, works=tuple(work.lighter() for work in self.works))


class Batches(Sequence[Batch]):
    """Groups of shards, each made when it is asked for."""

    def __init__(self, groups: Sequence[tuple[ShardWork, ...]], spec: ScorerSpec) -> None:
        self._groups, self._spec = groups, spec

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, number: Any) -> Any:
        return Batch(self._groups[number], self._spec)


class StandingScorer:
    """`scorer(batch)` scores and commits; the first shard of an answer says whether a model came in after the first one."""

    def __init__(self) -> None:
        self._scorer: Scorer | None = None

    def __call__(self, batch: Batch) -> tuple[ShardDone, ...]:
        """Raises what `Scorer` raises."""
        scorer, came = self._turned_to(batch.spec)
        first, *others = scorer.score_group(batch.works)
        return (replace(first, came=came), *others)

    def _turned_to(self, spec: ScorerSpec) -> tuple[Scorer, str]:
        """A scorer by `spec`, and how its model came: "" for the one that was there, or is the first."""
        scorer, self._scorer, came = self._scorer, None, ""  # what fails in between leaves no half of a model
        if scorer is not None and _model_of(scorer.spec) != _model_of(spec):
            scorer, came = (scorer, "in place") if _take_in(scorer, spec) else (None, "anew")
        scorer = scorer or Scorer(spec)
        scorer.turn_to(spec)
        self._scorer = scorer
        return scorer, came


def _model_of(spec: ScorerSpec) -> tuple[Any, ...]:
    """What two specs with the same model, held in the same way, have in common."""
    identity = spec.identity.weights, spec.identity.adapter, spec.model.four_bit
    return *identity, spec.dtype, spec.attention, spec.use_gpu, spec.weights, spec.num_sharing, spec.tokens_per_pass


def _take_in(scorer: Scorer, spec: ScorerSpec) -> bool:
    """Put the weights of `spec` into the model that is there; False, with nothing changed, where that cannot be."""
    before = scorer.spec
    if not scorer.is_whole or any(model.four_bit or model.base for model in (before.model, spec.model)):
        return False
    if replace(before, model=spec.model, identity=spec.identity, data=spec.data, cache_dir=spec.cache_dir) != spec:
        return False
    needed = whole_bytes(spec.model, spec.dtype)
    if needed is None or needed > USED_SHARE * free_bytes("cpu"):
        return False
    for folder in spec.model.folders:
        bring(folder)
    fresh, model = load_model(spec.model, spec.dtype, spec.attention), scorer.scoring.model
    if not is_alike(model, fresh):
        return False
    refill(model, fresh)
    scorer.scoring = AnswerLogProbs(model)
    check_head(scorer.scoring)
    scorer.layout, _ = choose_layout(model, spec.attention)
    return True
