"""Scoring rows that other runs may be scoring at the same time: each shard is claimed by one of them.

Comes in: the shards that the cache lacks. Goes out: what was done with each, in the order in which it is done. Decision: a
worker claims a shard when it begins with it, so that runs share the work as they come; what others have is waited for, and
taken over where they die. A claim that nothing becomes of for `reference.hang_timeout_s` is no longer waited for. Price: where
two runs cut their rows differently (other data, or other rows_per_shard), rows that both want are scored twice.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import overload

from raydpo import runtime
from raydpo.artifacts import ReferenceCache
from raydpo.artifacts.claim import is_claimed
from raydpo.driver.standing_scorers import Run, StandingScorers, scorers_of_stage
from raydpo.reference.plan import ShardPlan, Shards, ShardWork
from raydpo.reference.score import ScorerSpec, ShardDone, scorer_of_groups
from raydpo.reference.way import may_stream
from raydpo.rundir.workspace import Workspace
from raydpo.schema.events import Advanced, Note, Observer, StageStarted

_POLL_S = 0.5
_PASSES_AT_ONCE = 4
"""Of a streamed model that a worker makes before it asks for more work: only the last of them is not full."""


class SharedScoring:
    """The reference workers of a run, and what other runs on the same cache do meanwhile. Needs a session.

    scorers: workers that stand; None: some are started for this stage.
    """

    def __init__(
        self, workspace: Workspace, spec: ScorerSpec, observer: Observer, scorers: StandingScorers | None = None
    ) -> None:
        self._section, self._spec, self._observer = workspace.config.reference, spec, observer
        self._cache, self._scorers = ReferenceCache(spec.cache_dir, spec.identity), scorers
        self._done, self._has_said_halved, self._has_said_waiting = 0, False, False
        self._said = set[str]()

    def run(self, works: ShardPlan, probed: Sequence[ShardWork]) -> Iterator[ShardDone]:
        """Score `works`, and `probed` for this run alone. What another run scored comes with 0 rows and `is_left`."""
        self._observer(StageStarted("reference", works.num_rows, "rows"))
        with self._workers(len(works)) as score:
            left, quiet_since_s = list[ShardWork](), time.monotonic()
            todo: Sequence[ShardWork] = _Both(works, probed)
            while todo or left:
                scored = set[str]()
                groups = Groups(todo, self._shards_at_once(works))
                for index, shards in score(groups):
                    for work, shard in zip(groups[index], shards, strict=True):
                        if not shard.is_left:
                            scored.add(shard.name)
                            yield self._told(shard)
                        elif isinstance(todo, _Both):
                            left.append(work)
                left = [work for work in left if work.name not in scored]
                if runtime.requested():
                    return
                by_others = {work.name: len(work.keys) for work in left if self._cache.has_shard(work.name)}
                for name, num_rows in by_others.items():
                    yield self._told(ShardDone(name, 0, 0, 0, is_left=True), num_rows)
                left = [work for work in left if work.name not in by_others]
                if scored or by_others:
                    quiet_since_s = time.monotonic()
                todo = self._free(left, time.monotonic() - quiet_since_s)
                if left and not todo:
                    self._say_waiting(left)
                    time.sleep(_POLL_S)

    def _shards_at_once(self, works: ShardPlan) -> int:
        """Shards that a worker gets at a time: one, or for a streamed model several passes' worth, as far as all have work."""
        section = self._section
        if not may_stream(self._spec.weights, self._spec.model, self._spec.dtype) or not works:
            return 1
        tokens_per_shard = sum(sum(work.lengths) for work in (works[0], works[-1])) // 2
        return shards_at_once(len(works), tokens_per_shard, section.workers[1], section.stream_tokens)

    def _free(self, left: Sequence[ShardWork], quiet_s: float) -> list[ShardWork]:
        """Those of `left` that nobody has now; all of them when nothing became of any for too long."""
        if left and quiet_s > self._section.hang_timeout_s:
            text = f"other runs committed nothing for {quiet_s:.0f} s; what they claim is scored here, too"
            self._observer(Note("warning", f"reference: {text}"))
            return [replace(work, is_claimed=False) for work in left]
        return [work for work in left if not is_claimed(self._cache.claims, work.name)]

    def _say_waiting(self, left: Sequence[ShardWork]) -> None:
        if not self._has_said_waiting:
            self._has_said_waiting = True
            rows = sum(len(work.keys) for work in left)
            self._observer(Note("info", f"reference: {rows:,} rows are being scored by other runs on this cache"))

    def _told(self, shard: ShardDone, num_rows: int = 0) -> ShardDone:
        """Say how far the stage is. num_rows: that another run scored."""
        for said in shard.said:
            if said not in self._said:
                self._said.add(said)
                self._observer(Note("info", f"reference: {said}"))
        if shard.did_not_fit and not self._has_said_halved:
            self._has_said_halved = True
            self._observer(Note("warning", _halved(shard.did_not_fit, self._section.tokens_per_batch)))
        if not shard.nats:
            self._done += shard.rows + num_rows
            self._observer(Advanced("reference", self._done))
            runtime.gauge("raydpo_scored_rows", self._done, "reference")
        return shard

    def _workers(self, num_works: int) -> AbstractContextManager[Run]:
        if self._scorers is not None:
            return self._scorers.scoring(self._spec)
        return scorers_of_stage(self._section, partial(scorer_of_groups, self._spec), num_works, self._observer)


def shards_at_once(num_shards: int, tokens_per_shard: int, num_workers: int, tokens_per_pass: int) -> int:
    """Shards of a group: `_PASSES_AT_ONCE` passes' worth, but not so many that a worker has none."""
    wanted = -(-_PASSES_AT_ONCE * tokens_per_pass // max(1, tokens_per_shard))
    return max(1, min(wanted, -(-num_shards // num_workers)))


class Groups(Sequence[tuple[ShardWork, ...]]):
    """Shards in order, `size` of them an item of the pool."""

    def __init__(self, works: Sequence[ShardWork], size: int) -> None:
        self._works, self._size = works, size

    def __len__(self) -> int:
        return -(-len(self._works) // self._size)

    @overload
    def __getitem__(self, number: int) -> tuple[ShardWork, ...]: ...
    @overload
    def __getitem__(self, number: slice) -> list[tuple[ShardWork, ...]]: ...
    def __getitem__(self, number: int | slice) -> tuple[ShardWork, ...] | list[tuple[ShardWork, ...]]:
        if isinstance(number, slice):
            return [self[each] for each in range(len(self))[number]]
        start = range(len(self))[number] * self._size
        return tuple(self._works[start : start + self._size])


class _Both(Shards):
    """A plan, and what is done besides: no shard is written down before its turn."""

    def __init__(self, works: ShardPlan, more: Sequence[ShardWork]) -> None:
        self._works, self._more = works, more

    def __len__(self) -> int:
        return len(self._works) + len(self._more)

    def at(self, number: int) -> ShardWork:
        return self._works[number] if number < len(self._works) else self._more[number - len(self._works)]


def _halved(what: str, tokens_per_batch: int) -> str:
    return (
        f"reference: {what}; it was done in halves, and so is every batch that does not fit, which costs a forward in vain. A "
        f"lower reference.tokens_per_batch (now {tokens_per_batch:,}) saves them. Values stay within the tolerance of their "
        "dtype."
    )
