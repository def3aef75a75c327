"""A model in a folder that scores sequences, in an engine of the generators' kind: of other policies than theirs.

Comes in: a model folder and requests. Goes out: log-probs. Decision: one actor, which stands and takes the weights of another
folder in place; where it may not stand, one is started for each list of requests. Price: what stands holds a second model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from raydpo import runtime
from raydpo.config.round_sections import GenerateSection
from raydpo.driver.actors import libraries_of, worker_limits
from raydpo.driver.ledger import Ledger
from raydpo.generate.engine import EngineSpec
from raydpo.generate.worker import Generator
from raydpo.schema.samples import LoadFolder, Score, Scored


class FolderScorer:
    """Needs a session. Close it after use.

    role: for messages and the ledger. engine: as the generators are made. stands: whether its actor stays. moves: whether
    other folders will come than the first one.
    """

    def __init__(
        self, role: str, engine: EngineSpec, section: GenerateSection, ledger: Ledger, *, stands: bool, moves: bool
    ) -> None:
        self._role, self._section, self._ledger, self._stands = role, section, ledger, stands
        self._engine = replace(engine, takes_weights=stands and moves)
        self._pool: runtime.Pool | None = None
        self._start = self._held = Path()
        self._is_greeted, self._version = False, engine.version

    def score(self, folder: Path, requests: Sequence[Score]) -> Iterator[tuple[int, Scored]]:
        """(index of the request, log-probs of the model in `folder`), in the order they finish."""
        if self._stands:
            yield from self._holding(folder).run(requests)
            return
        with closing(self._made(folder)) as pool:
            yield from pool.run(requests)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()

    def _holding(self, folder: Path) -> runtime.Pool:
        """The actor that stands, with the weights in `folder`; whoever takes its place is given them, too."""
        if self._pool is None:
            self._pool, self._start, self._held = self._made(folder), folder, folder
        if folder != self._held:
            self._version += 1  # a version that an actor holds already it does not load again
            message = LoadFolder(str(folder), self._version)
            self._is_greeted = folder != self._start
            self._pool.greet_with(message if self._is_greeted else None)
            self._ledger.updated(self._role, len(self._pool.tell(message)))
            self._held = folder
        return self._pool

    def _made(self, folder: Path) -> runtime.Pool:
        section = self._section
        return runtime.Pool(
            self._role,
            partial(Generator, replace(self._engine, model=str(folder))),
            num_workers=1,
            cpus=0,
            own_process=self._engine.engine != "transformers",
            preload=libraries_of(self._engine.engine),
            placed=self._count_start,
            **worker_limits(section, "generate"),
        )

    def _count_start(self, _: object) -> None:
        self._ledger.started(self._role)
        self._ledger.loaded(self._role)
        self._ledger.updated(self._role, int(self._is_greeted))
