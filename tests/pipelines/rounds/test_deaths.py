"""A generator, the judge, the trainers and the driver die in the middle: the pairs are those of an undisturbed run.

With `split` the samples of the second round are made while the first one trains, so either may die while the other works. The
moment is drawn from a seed that is drawn anew each time and printed, so that over many runs of these tests every moment
comes, and RAYDPO_TEST_SEED brings one back.
"""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from raydpo.config import Config
from raydpo.config.render import dump
from raydpo.errors import WorkerError
from raydpo.pipelines import iterate
from raydpo.runtime import session
from raydpo.schema.events import Advanced, Event
from tests.pipelines import driver
from tests.pipelines.rounds.toy_rounds import NUM_PROMPTS, no_digits, pairs, rounds_config
from tests.pipelines.toy import NUM_EVAL, NUM_TRAIN, Toy, weights

pytestmark = pytest.mark.slow

CHANGES: dict[str, Any] = {"generate.num_workers": 2, "train.save_every": 1}
"""Two generators are processes. What else is to die is made one: with `split` every role is, colocated it is said."""
SEED = os.environ.get("RAYDPO_TEST_SEED") or str(random.SystemRandom().randrange(2**31))
NUM_ITEMS = 2 * 6 + 4 + 2 * (4 + 4)
"""Of generators: the samples of two rounds; greedy held-out answers of three policies, sampled ones of two."""
NUM_STEPS = 3
"""Of each round."""


@dataclass(frozen=True)
class Scene:
    """Rounds with one placement. undisturbed: the folder of a run in which nobody died."""

    toy: Toy
    placement: str
    undisturbed: Path

    def folder(self, name: str) -> Path:
        return self.toy.root / f"{name}-{self.placement}"

    def config(self, folder: Path, changes: Mapping[str, Any] | None = None) -> Config:
        return rounds_config(self.toy, folder, {**CHANGES, "rounds.placement": self.placement, **(changes or {})})

    def assert_same(self, folder: Path) -> None:
        """Nothing lost, nothing doubled, nothing else: pairs, weights and measures of both rounds, bit for bit."""
        assert measured(folder) == measured(self.undisturbed)
        for index in range(2):
            assert pairs(folder, index) == pairs(self.undisturbed, index)
            train = f"rounds/{index:03d}/train/model"
            assert weights(folder / train) == weights(self.undisturbed / train)


@pytest.fixture(scope="module", params=["colocated", "split"])
def scene(request: pytest.FixtureRequest, toy: Toy) -> Iterator[Scene]:
    """In one session, as both placements open it, so that all runs of a placement fork their processes from one server."""
    placement = request.param
    found = Scene(toy, placement, toy.root / f"undisturbed-{placement}")
    with session(kind="local", local_cpus=4, in_process=placement != "split"):
        rounds = list(iterate(found.config(found.undisturbed)))
        assert [each.staleness for each in rounds] == [0, int(placement == "split")]
        assert [each.metrics["train/steps"] for each in rounds] == [NUM_STEPS] * 2
        yield found


def measured(folder: Path) -> list[Mapping[str, float]]:
    """Of the initial policy and of every round."""
    summary = json.loads((folder / "summary.json").read_text())
    return [summary["initial"], *(found["metrics"] for found in summary["rounds"])]


def drawn(what: str, *numbers: int) -> int:
    """One of `numbers`, which nobody chose; a failing test shows the seed that chooses it again."""
    number = random.Random(f"{SEED} {what}").choice(numbers)
    print(f"drawn: {what} {number} of {numbers}; again by RAYDPO_TEST_SEED={SEED}")
    return number


class Killer:
    """An observer that sends SIGKILL to a process named `title` at the `number`-th step forward of a stage, over all rounds.
    place: 0 for the oldest of them, -1 for the newest."""

    def __init__(self, title: str, place: int, stage: str, number: int) -> None:
        self.title, self.place, self.stage, self.left, self.killed = title, place, stage, number, 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Advanced) and event.stage == self.stage:
            self.left -= 1
            if self.left == 0:
                self.killed = driver.by_age(self.title)[self.place]
                os.kill(self.killed, signal.SIGKILL)


def after(seconds: float) -> Callable[[], bool]:
    """True from so many seconds after the first question on."""
    started: list[float] = []

    def is_over() -> bool:
        started.append(time.monotonic())
        return started[-1] - started[0] >= seconds

    return is_over


def test_a_generator_dies(scene: Scene) -> None:
    """One of the two that stand before anybody else does."""
    folder, killer = (
        scene.folder("generator-dies"),
        Killer("PoolActor", 0, "generate", drawn("item", *range(1, NUM_ITEMS))),
    )
    assert len(list(iterate(scene.config(folder), observer=killer))) == 2
    assert killer.killed
    scene.assert_same(folder)


def test_the_judge_dies(scene: Scene) -> None:
    folder, mark = scene.folder("judge-dies"), Path(tempfile.gettempdir()) / f"raydpo-judge-{os.getpid()}"
    changes = {"judge.function": f"{__name__}:deadly_judge", "judge.num_workers": 2}
    mark.write_text(str(drawn("prompt", *range(NUM_PROMPTS), *range(NUM_TRAIN, NUM_TRAIN + NUM_EVAL))))
    try:
        assert len(list(iterate(scene.config(folder, changes)))) == 2
        assert mark.read_text() == "dead"
    finally:
        mark.unlink()
    scene.assert_same(folder)


def deadly_judge(prompt: str, responses: list[str]) -> list[float]:
    """Kills its process when it is asked about the prompt whose number a test's mark holds; once."""
    for driver_of_it in psutil.Process().parents():
        mark = Path(tempfile.gettempdir()) / f"raydpo-judge-{driver_of_it.pid}"
        if mark.is_file() and prompt.startswith(f"{mark.read_text()}: "):
            mark.write_text("dead")
            os.kill(os.getpid(), signal.SIGKILL)
    return no_digits(prompt, responses)


def test_the_trainers_die_and_the_same_call_goes_on(scene: Scene) -> None:
    folder, killer = (
        scene.folder("trainer-dies"),
        Killer("RankActor", -1, "train", drawn("step", 1, 2, NUM_STEPS + 1, NUM_STEPS + 2)),
    )
    config = scene.config(folder, {"run.runtime_in_process": False, "train.max_failures": 0})
    with pytest.raises(WorkerError, match=r"train.*rank 0.*SIGKILL"):
        list(iterate(config, observer=killer))
    assert killer.killed
    assert len(list(iterate(scene.config(folder)))) == 2
    scene.assert_same(folder)


def test_the_driver_dies_again_and_again(scene: Scene) -> None:
    """At three of six moments."""
    folder, file = scene.folder("driver-dies"), scene.folder("driver-dies.yaml")
    config = scene.config(folder)
    file.write_text(dump(config))
    first, second = folder / "rounds/000", folder / "rounds/001"
    moments: list[Callable[[], bool]] = [
        after(drawn("second", *range(12))),  # while it imports, starts or works
        lambda: any(first.glob(".generations-work/part-00001*")) or (first / "generations").exists(),
        lambda: any(first.glob(".scores-work/part-00000*")) or (first / "scores").exists(),
        lambda: (first / "train/checkpoints/step-000001").is_dir() or (first / "summary").exists(),
        lambda: any((first / "evaluation").glob("*/part-00000*")) or (second / "generations").exists(),
        lambda: any(second.glob(".generations-work/part-00002*")) or (second / "generations").exists(),
    ]
    passed = {drawn(f"moment that passes, of {places}", *places) for places in ((0, 1), (2, 3), (4, 5))}
    for number, moment in enumerate(moments):
        if number in passed:
            continue
        log = scene.folder(f"driver-dies-{number}.log")
        process = driver.start("iterate", str(file), log=log)
        driver.wait_until(moment, process, log)
        driver.kill(process)
    assert len(list(iterate(config))) == 2
    scene.assert_same(folder)
