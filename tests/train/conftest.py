"""One world, one gang of each size and one memory of finished runs for all tests here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from raydpo.schema.rank_events import Evaluated, Finished, Probed, Skipped, Staged, Stepped
from raydpo.train import TrainSpec
from tests.train import jobs
from tests.train.gang import Gang
from tests.train.world import World, make_world


@pytest.fixture(scope="module", autouse=True)
def quiet_torch() -> Iterator[None]:
    """One thread, because tiny models lose much to threads on a busy machine, and their number decides the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def gangs() -> Iterator[dict[int, Gang]]:
    gangs = {number: Gang(number) for number in (1, 2, 3, 4)}
    yield gangs
    for gang in gangs.values():
        gang.close()


@dataclass(frozen=True)
class Run:
    """What rank 0 of a run said."""

    spec: TrainSpec
    events: list[Any]
    error: str = ""

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def losses(self) -> list[float]:
        return self.series("loss")

    def series(self, name: str) -> list[float]:
        return [event.metrics[name] for event in self.of(Stepped)]

    @property
    def probed(self) -> Probed:
        (event,) = self.of(Probed)
        return event

    @property
    def first_evaluation(self) -> dict[str, float]:
        return dict(self.of(Evaluated)[0].metrics)

    @property
    def last_evaluation(self) -> dict[str, float]:
        return dict(self.of(Evaluated)[-1].metrics)

    @property
    def skipped(self) -> list[Skipped]:
        return self.of(Skipped)

    def staged(self, step: int | None = None) -> Path:
        """Folder of the checkpoint staged at `step`, default the last."""
        events: list[Staged] = self.of(Staged)
        return Path(next(e.folder for e in reversed(events) if step is None or e.step == step))

    @property
    def finished(self) -> Finished:
        (event,) = self.of(Finished)
        return event


@dataclass
class Runs:
    """Trains on demand; the same question is answered once."""

    world: World
    gangs: dict[int, Gang]
    folder: Path
    done: dict[str, Run] = field(default_factory=dict)

    def spec(self, **options: Any) -> TrainSpec:
        return self.world.spec(self.folder / f"run-{len(list(self.folder.iterdir()))}", **options)

    def get(self, num_ranks: int = 1, **options: Any) -> Run:
        key = f"{num_ranks} {sorted(options.items(), key=lambda option: option[0])}"
        if key not in self.done:
            self.done[key] = self.fresh(self.spec(**options), num_ranks)
        return self.done[key]

    def fresh(self, spec: TrainSpec, num_ranks: int = 1, **options: Any) -> Run:
        spec.staging.mkdir(parents=True, exist_ok=True)
        answers = self.gangs[num_ranks].run(jobs.train, spec, **options)
        errors = {error for _, error in answers}
        assert len(errors) == 1, f"ranks ended differently: {errors}"
        return Run(spec, answers[0][0], errors.pop())


@pytest.fixture(scope="session")
def runs(world: World, gangs: dict[int, Gang], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(world, gangs, tmp_path_factory.mktemp("runs"))
