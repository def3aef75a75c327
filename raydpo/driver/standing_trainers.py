"""The trainer ranks of a run of rounds: one gang that stands from its first training to the end.

Comes in: the trainings of rounds, one after the other. Goes out: what ranks yield, and how often they were started and loaded a
model. Decision: they stand where the device is theirs between two trainings (driver.room_to_stand); on CPUs roles take turns,
and nobody else reserves any while they stand. A gang that failed, lost its node or is to have another size is ended, and the
next training starts another one.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from raydpo import runtime
from raydpo.config import Config
from raydpo.driver.actors import trainer_gang
from raydpo.driver.export_proof import StandingProver
from raydpo.driver.ledger import Ledger
from raydpo.errors import StateLostError
from raydpo.rundir.workspace import Workspace
from raydpo.schema.events import Note, Observer
from raydpo.schema.rank_events import Finished, ModelReady, TrainEvent
from raydpo.train import TrainSpec
from raydpo.train.loop import run as train_rank


class StandingTrainers:
    """ledger: what is started and loaded is counted there. why_not: why they end after each training, as a clause; empty where
    they stand. prover: loads what they publish; None where a worker is started for each. Made in the session of the run, and to
    be closed before it is. hindrance: why they end after each training, as far as is known by now."""

    def __init__(self, observer: Observer, ledger: Ledger, why_not: str, prover: StandingProver | None = None) -> None:
        self.prover = prover
        self._ledger, self._observer = ledger, observer
        self._home = runtime.home()
        self._stands, self._is_said, self.hindrance = not why_not, False, why_not
        self._gang: runtime.Gang | None = None
        self._holds: Path | None = None  # folder that will be published with the weights that ranks ended with

    @property
    def lend_cpus(self) -> bool:
        """Whether others work on the CPUs of ranks that wait, and reserve none: before the ranks start, too, because some of
        those others stand."""
        return self._stands

    def run(
        self,
        workspace: Workspace,
        spec: TrainSpec,
        max_unread: int | None,
        num_ranks: int,
        observer: Observer,
    ) -> Generator[tuple[int, TrainEvent], None, None]:
        """Train `spec` on the ranks that stand, or on fresh ones: (rank, what it yields). Raises as `Gang.run`."""
        if self._gang is not None and (self._gang.num_ranks != num_ranks or self._is_leaving(self._gang)):
            self.end()
        is_held, self._holds = spec.model.folder == self._holds, None
        if not is_held:
            _require_state(spec)
        if self._gang is None:
            self._gang = trainer_gang(
                workspace.config, "train", num_ranks, observer, keeps=self._stands, home=self._home
            )
            self._ledger.started("train", num_ranks)
        gang, hindrance = self._gang, "they ended early"
        function = partial(train_rank, spec=replace(spec, stands=is_held))
        try:
            with closing(gang.run(function, max_unread)) as events:  # who leaves in the middle ends the gang
                for rank, event in events:
                    if isinstance(event, Finished) and _publishes_last(workspace.config):
                        self._holds = workspace.dir / "model"
                    if isinstance(event, ModelReady):
                        hindrance = event.hindrance
                        (self._ledger.loaded if event.is_loaded else self._ledger.updated)("train", num_ranks)
                    yield rank, event
        finally:
            if gang.is_closed or hindrance or not self._stands:
                self.end()
        if hindrance and self._stands and not self._is_said:
            self._is_said, self.hindrance = True, hindrance
            self._observer(Note("info", f"trainers start anew for each round: {hindrance}"))

    def end(self) -> None:
        """End the ranks; the next training starts others."""
        gang, self._gang, self._holds = self._gang, None, None
        if gang is not None:
            gang.close()

    def close(self) -> None:
        """End everything."""
        self.end()
        if self.prover is not None:
            self.prover.close()

    def _is_leaving(self, gang: runtime.Gang) -> bool:
        leaving = runtime.leaving_nodes()
        found = any(place.node_id in leaving for place in gang.places)
        if found:
            self._observer(Note("info", "train: a node of the ranks is being taken away; others start"))
        return found


def _require_state(spec: TrainSpec) -> None:
    """Raise StateLostError where ranks that do not hold what `spec` goes on with would find it on no disk."""
    if spec.resume is None and spec.optimizer is not None and not (spec.optimizer / "engine").is_dir():
        raise StateLostError(
            "the optimizer state that the round goes on with was in the memory of trainers that ended, and "
            f"{spec.optimizer} has the weights alone. The same command trains the rounds since the newest saved one again."
        )


def _publishes_last(config: Config) -> bool:
    """Whether `model/` is what ranks end with, and the whole of it."""
    return config.train.export == "last" and config.train.lora is None
