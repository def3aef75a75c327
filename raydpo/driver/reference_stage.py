"""The reference stage: log-probs of the rows that the cache does not hold yet.

Comes in: a workspace whose token shards are there. Goes out: shards in the cache and a report. Decision: workers commit
shards, the driver only plans, counts and compares; nothing large comes back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raydpo import runtime
from raydpo.artifacts import CacheIdentity, ReferenceCache, shown, write_json
from raydpo.driver.actors import actor_session, demand
from raydpo.driver.disk_room import check_cache_room
from raydpo.driver.shared_scoring import SharedScoring
from raydpo.driver.standing_scorers import StandingScorers
from raydpo.driver.trainer_scoring import RowsFirst, hindrance
from raydpo.errors import ConfigError, IntegrityError, ReferenceMismatchError
from raydpo.models.agreement import Noise, compare
from raydpo.reference.plan import plan_shards, probe_work, wanted_rows
from raydpo.reference.score import ScorerSpec, ShardDone
from raydpo.rundir.workspace import Workspace
from raydpo.schema.events import Note, Observer, StageDone, StageStarted


@dataclass(frozen=True)
class ReferenceReport:
    """What the reference stage did.

    rows: distinct rows of the run.
    rows_scored: rows that were scored in this call.
    forwards: forwards of the model in this call.
    passes, weight_bytes: of streamed models, passes over their layers and bytes of weights that were read.
    damaged: cached shards that were found damaged.
    cache, identity: where the values are, and who the reference is.
    first: what trainers score before their first step; None: nothing is left to score.
    probe: how far cached rows are from what the reference gives now, where that was asked.
    """

    rows: int
    rows_scored: int = 0
    forwards: int = 0
    damaged: tuple[str, ...] = ()
    cache: ReferenceCache | None = None
    identity: CacheIdentity | None = None
    probe: Mapping[str, float] = field(default_factory=dict)
    passes: int = 0
    weight_bytes: int = 0
    first: RowsFirst | None = None

    def to_json(self) -> dict[str, Any]:
        counts = {"rows": self.rows, "rows_scored": self.rows_scored, "forwards": self.forwards}
        where = {} if self.cache is None else {"cache": shown(self.cache.folder)}
        streamed = {"passes": self.passes, "weight_bytes": self.weight_bytes} if self.passes else {}
        return {**counts, **streamed, "damaged_shards": list(self.damaged), **where}


def scorer_spec(workspace: Workspace, identity: CacheIdentity) -> ScorerSpec:
    section = workspace.config.reference
    return ScorerSpec(
        model=workspace.measured_by,
        dtype=workspace.dtype,
        attention=workspace.config.model.attention,
        data=workspace.data,
        cache_dir=workspace.cache_dir,
        identity=identity,
        tokens_per_batch=section.tokens_per_batch,
        use_gpu=section.gpus_per_worker > 0,
        weights="auto" if section.weights == "trainers" else section.weights,
        num_sharing=sharing(section.gpus_per_worker, section.workers[1]),
        tokens_per_pass=section.stream_tokens,
    )


def sharing(gpus: float, num_workers: int) -> int:
    """Workers that share the memory of a device, at most. gpus: of each. Needs a session."""
    if gpus:
        return max(1, int(1 / gpus))
    return -(-num_workers // max(1, runtime.count_nodes()))


def reference_stage(
    workspace: Workspace,
    splits: tuple[str, ...],
    observer: Observer,
    examples: Mapping[str, np.ndarray] | None = None,
    *,
    probe: bool = False,
    has_trainers: bool = False,
    scorers: StandingScorers | None = None,
) -> ReferenceReport:
    """Score the rows of `splits` that the cache does not hold. Starts no worker if there are none and nothing is probed.

    has_trainers: trainers start next, and may score the rows where `reference.weights` says so. scorers: workers that stand.
    examples: split -> the examples whose rows are needed, all of a split that is not in it. probe: score a few rows of the
    training split once more and compare. Raises ReferenceMismatchError when the cache holds other values.
    """
    identity = workspace.identity
    if identity is None:
        observer(Note("info", f"objective {workspace.config.objective.name} has no reference: nothing to precompute."))
        return ReferenceReport(0)
    cache = ReferenceCache(workspace.cache_dir, identity)
    cache.open()
    for message in cache.damaged:
        observer(Note("warning", message))
    write_json(workspace.dir / "reference.json", {"cache": shown(cache.folder), "identity": identity.digest})
    wanted = wanted_rows(workspace.data, splits, workspace.config.objective.num_rows, examples)
    works = plan_shards(wanted, cache, workspace.config.reference.rows_per_shard)
    check_cache_room(workspace.cache_dir, works)
    if works and workspace.config.reference.weights == "trainers":
        if has_trainers:
            return _left_to_trainers(workspace, cache, splits, len(wanted.keys), works.num_rows, observer)
        observer(Note("info", "reference.weights: trainers; no trainer starts afresh here, so workers score"))
    scored = forwards = by_others = passes = weight_bytes = 0
    again: ShardDone | None = None
    probed = [probe_work(workspace.data, workspace.config.objective.num_rows)] if probe else []
    if works or probed:
        with actor_session(workspace, observer, "reference"):
            runtime.wait_for_nodes(demand(workspace.config, "reference"))
            runtime.check_storage(workspace.dir)
            runtime.check_storage(workspace.cache_dir)
            missed = works.num_rows
            runtime.gauge("raydpo_cache_hit_rows", len(wanted.keys) - missed, "reference")
            runtime.gauge("raydpo_cache_missed_rows", missed, "reference")
            sharing = SharedScoring(workspace, scorer_spec(workspace, identity), observer, scorers)
            with runtime.deferred(committed=lambda: f"{scored} rows were scored and committed."):
                for shard in sharing.run(works, probed):
                    passes, weight_bytes = passes + shard.passes, weight_bytes + shard.weight_bytes
                    if shard.nats:
                        again = shard
                    else:
                        scored, forwards = scored + shard.rows, forwards + shard.forwards
        by_others = missed - scored
        cache.open()
        if missing := int((~cache.holds(wanted.keys)).sum()):
            raise IntegrityError(f"{missing} rows are still missing from {cache.folder} after the reference pass")
    cache.write_index()
    others = f", {by_others} were scored by other runs meanwhile" if by_others else ""
    there = len(wanted.keys) - scored - by_others
    text = f"{scored} of {len(wanted.keys)} rows scored, {there} were in the cache {shown(cache.folder)}{others}"
    if passes:
        text += f"; streamed in {passes:,} passes, {weight_bytes / 1e9:,.2f} GB of weights read"
    observer(StageDone("reference", text))
    apart = _compared(cache.lookup(list(probed[0].keys)), again, observer) if again else {}
    return ReferenceReport(
        len(wanted.keys), scored, forwards, tuple(cache.damaged), cache, identity, apart, passes, weight_bytes
    )


def _left_to_trainers(
    workspace: Workspace,
    cache: ReferenceCache,
    splits: tuple[str, ...],
    num_rows: int,
    missing: int,
    observer: Observer,
) -> ReferenceReport:
    """What trainers are to score. Raises ConfigError where they cannot."""
    config, section = workspace.config, workspace.config.reference
    if why := hindrance(config, starts_at_reference=workspace.starts_at_reference):
        raise ConfigError(
            f"reference.weights: trainers; {why}. Nothing was scored. Set reference.weights: auto, whole or streamed."
        )
    observer(
        Note("info", f"reference: {missing} of {num_rows} rows are scored by the trainers before their first step")
    )
    observer(StageStarted("reference", missing, "rows"))
    num_answers, batch = config.objective.num_rows, section.tokens_per_batch
    first = RowsFirst(
        workspace.data, splits, num_answers, workspace.cache_dir, cache.identity, section.rows_per_shard, batch
    )
    damaged, identity = tuple(cache.damaged), workspace.identity
    return ReferenceReport(num_rows, damaged=damaged, cache=cache, identity=identity, first=first)


def _compared(cached: Sequence[np.ndarray], again: ShardDone, observer: Observer) -> dict[str, float]:
    """How far rows of the cache are from what the declared reference gives now. Raises ReferenceMismatchError.

    It is asked where training starts from other weights than the reference, and the trainers cannot tell.
    """
    found = compare(again.nats, cached, Noise(again.noise_nats).tolerance)
    if found.problem is not None:
        _, now, then, difference, allowed = found.problem
        raise ReferenceMismatchError(
            f"the cache says {then:.6f} nats for a probe row, the reference now gives {now:.6f}: they differ by "
            f"{difference:.3g}, allowed are {allowed:.3g} (rounding moves a token by {again.noise_nats:.2g} nats). Margins "
            "would be measured from the wrong reference. The cache was made by other kernels or on other hardware: use another "
            "reference.cache_dir."
        )
    text = f"{found.rows} cached rows scored again by the declared reference: max {found.worst_nats:.2g} nats apart"
    observer(Note("info", text))
    return {
        "rows": found.rows,
        "max_difference_nats": found.worst_nats,
        "tolerance_nats": found.allowed_nats,
        "noise_nats": again.noise_nats,
    }
