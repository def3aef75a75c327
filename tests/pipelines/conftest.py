"""One session without Ray, one tiny model and one finished run for all tests of this folder; a Ray for those about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raydpo.pipelines import precompute, train
from raydpo.runtime import session
from tests.pipelines.toy import Notes, Toy, config, make_toy


@dataclass(frozen=True)
class Finished:
    """A run that ended undisturbed."""

    dir: Path
    summary: dict[str, Any]
    notes: Notes


@pytest.fixture(scope="package")
def machine() -> Iterator[None]:
    """What `run.runtime: local` opens by itself, with four CPUs whatever the machine has."""
    with session(kind="local", local_cpus=4):
        yield


@pytest.fixture(scope="module")
def processes() -> Iterator[None]:
    """Like `machine`, but no role is in this process."""
    with session(kind="local", local_cpus=4, in_process=False):
        yield


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """For tests whose subject is what Ray does: configs need `run.runtime: ray` too."""
    with session(local_cpus=4):
        yield


@pytest.fixture(scope="package")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="package")
def scored(toy: Toy, machine: None) -> dict[str, Any]:
    """Summary of the precompute that filled `toy.cache`."""
    return precompute(config(toy, toy.root / "scored"))


@pytest.fixture(scope="package")
def finished(toy: Toy, scored: dict[str, Any], machine: None) -> Finished:
    notes, folder = Notes(), toy.root / "finished"
    summary = train(config(toy, folder, {"train.keep_checkpoints": 3}), notes)
    return Finished(folder, summary, notes)
