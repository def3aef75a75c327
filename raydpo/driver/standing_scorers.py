"""Reference workers as a pool: for one stage, or standing over the rounds of a run.

Comes in: the section `reference`, and groups of shards with the spec that they are scored by. Goes out: what became of each.
Decision: workers that stand reserve no CPUs, because they wait while trainers work on them, and keep the model that they have.
Where that cannot be (driver.room_to_stand) others are started for each stage. Price: workers without a reservation are spread
by Ray as it likes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

from raydpo import runtime
from raydpo.config import Config
from raydpo.config.sections import ReferenceSection
from raydpo.driver.actors import libraries_of, worker_limits
from raydpo.driver.ledger import Ledger
from raydpo.reference.plan import ShardWork
from raydpo.reference.score import ScorerSpec, ShardDone
from raydpo.reference.standing import Batch, Batches, StandingScorer
from raydpo.schema.events import Note, Observer

Groups = Sequence[tuple[ShardWork, ...]]
Run = Callable[[Groups], Iterator[tuple[int, Sequence[ShardDone]]]]
"""Groups of shards -> (index of the group, what was done with its shards), in the order in which they are done."""


class StandingScorers:
    """The reference workers of a run of rounds. In the session of the run; close them after use.

    why_not: why they end after each stage, as a clause; empty where they stand. ledger: what they start and load.
    """

    def __init__(self, config: Config, observer: Observer, ledger: Ledger, why_not: str) -> None:
        self._section, self._observer, self._ledger = config.reference, observer, ledger
        self.stands = not why_not
        self._pool = self._made(cpus=0) if self.stands else None

    @contextmanager
    def scoring(self, spec: ScorerSpec) -> Iterator[Run]:
        """What scores by `spec`. Workers that were left in the middle of something end."""
        pool, is_over = self._pool or self._made(self._section.cpus_per_worker), False
        try:
            yield partial(self._run, pool, spec)
            is_over = True
        finally:
            if not (self.stands and is_over):
                pool.stop()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()

    def _made(self, cpus: float) -> runtime.Pool:
        counted = self._ledger.at_place("reference", loads=True)

        def placed(place: runtime.Place) -> None:
            counted(place)
            say_place(self._observer, place)

        return scorer_pool(self._section, StandingScorer, self._section.workers[1], cpus, Batch.lighter, placed)

    def _run(self, pool: runtime.Pool, spec: ScorerSpec, groups: Groups) -> Iterator[tuple[int, Sequence[ShardDone]]]:
        for index, shards in pool.run(Batches(groups, spec)):
            if shards[0].came == "in place":
                self._ledger.updated("reference")
            elif shards[0].came == "anew":
                self._ledger.loaded("reference")
            yield index, shards


@contextmanager
def scorers_of_stage(
    section: ReferenceSection,
    make_worker: Callable[[], Callable[[Sequence[ShardWork]], Sequence[ShardDone]]],
    num_works: int,
    observer: Observer,
) -> Iterator[Run]:
    """Workers for one stage, no more than there are shards."""
    num_workers, placed = min(section.workers[1], max(1, num_works)), partial(say_place, observer)
    with closing(scorer_pool(section, make_worker, num_workers, section.cpus_per_worker, _lighter, placed)) as pool:
        yield pool.run


def scorer_pool(
    section: ReferenceSection,
    make_worker: Callable[[], Callable[[Any], Any]],
    num_workers: int,
    cpus: float,
    lighter: Callable[[Any], Any],
    placed: Callable[[runtime.Place], None],
) -> runtime.Pool:
    """Needs a session. cpus: what each reserves. lighter, placed: as of a pool."""
    return runtime.Pool(
        "reference",
        make_worker,
        num_workers=num_workers,
        cpus=cpus,
        lighter=lighter,
        preload=libraries_of(),
        placed=placed,
        **worker_limits(section, "reference"),
    )


def say_place(observer: Observer, place: runtime.Place) -> None:
    """Workers come when there is room for them, and a person wants to know that a new node is used."""
    if runtime.count_nodes() > 1:
        observer(Note("info", f"reference: a worker takes part on {place.host}"))


def _lighter(group: Sequence[ShardWork]) -> tuple[ShardWork, ...]:
    return tuple(work.lighter() for work in group)
