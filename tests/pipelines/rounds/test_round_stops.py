"""SIGTERM and Ctrl-C in a round: what is answered is committed, what is in work comes to its part; the same call goes on."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from raydpo.errors import Stopped
from raydpo.pipelines import iterate
from raydpo.runtime import requested
from raydpo.schema.events import Advanced, Event, StageDone
from tests.pipelines import driver
from tests.pipelines.rounds.toy_rounds import no_digits, pairs, rounds_config
from tests.pipelines.toy import Toy, weights

pytestmark = pytest.mark.slow

COLOCATED = {"rounds.num_rounds": 1, "judge.function": None}
"""With a judge that is handed in, so that everything is in this process."""
SPLIT = {
    "rounds.placement": "split",
    "rounds.num_rounds": 2,
    "rounds.eval_prompts": [],
    "rounds.prompts_per_round": 8,
    "judge.function": None,
}


class Signal:
    """An observer that sends this process a signal at the `number`-th step forward of a stage, counted from 1."""

    def __init__(self, stage: str, number: int, signum: int, times: int = 1) -> None:
        self.stage, self.left, self.signum, self.times = stage, number, signum, times

    def __call__(self, event: Event) -> None:
        if isinstance(event, Advanced | StageDone) and event.stage == self.stage:
            self.left -= 1
            if self.left == 0:
                for _ in range(self.times):
                    os.kill(os.getpid(), self.signum)


def parts(folder: Path) -> dict[str, int]:
    """Answered parts of all pieces, by their names in a committed piece, with the time when each was written."""
    found = [path for path in folder.rglob("part-*") if "train" not in path.parts]
    places = {path: path.relative_to(folder) for path in found}
    return {
        str(place.parent.parent / place.parent.name.removeprefix(".").removesuffix("-work") / place.name): (
            path.stat().st_mtime_ns
        )
        for path, place in places.items()
    }


def half_written(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if not path.name.endswith("-work")]


def assert_same(folder: Path, undisturbed: Path, num_rounds: int) -> None:
    for index in range(num_rounds):
        assert pairs(folder, index) == pairs(undisturbed, index)
        model = f"rounds/{index:03d}/train/model"
        assert weights(folder / model) == weights(undisturbed / model)


@pytest.fixture(scope="module")
def undisturbed(toy: Toy, machine: None) -> Path:
    folder = toy.root / "rounds-undisturbed"
    assert len(list(iterate(rounds_config(toy, folder, COLOCATED), no_digits))) == 1
    return folder


@pytest.mark.parametrize(
    ("stage", "number", "signum", "said"),
    [
        ("generate", 2, signal.SIGTERM, "of the evaluation before them 3 parts of generations."),
        ("generate", 5 + 3, signal.SIGINT, "of round 0 prompts, 4 parts of generations, 2 parts of scores."),
        ("judge", 5 + 1, signal.SIGTERM, "of round 0 prompts, 2 parts of generations, 1 part of scores."),
        ("pairs", 1, signal.SIGTERM, "of round 0 prompts, generations, scores, pairs."),
        ("train", 2, signal.SIGTERM, "of round 0 prompts, generations, scores, pairs, step 2 of its training."),
        ("generate", 5 + 7 + 1, signal.SIGTERM, "its model, 2 parts of generations of its evaluation."),
    ],
    ids=["first-evaluation", "sampling", "judging", "pairs", "training", "evaluation"],
)
def test_a_round_keeps_what_is_answered(
    toy: Toy, tmp_path: Path, undisturbed: Path, stage: str, number: int, signum: int, said: str
) -> None:
    """Of 4 parts of an evaluation and 6 of a round, and one event more at the end of each. A generator has the next part
    already when one is written; the judge has had those before."""
    wanted = rounds_config(toy, tmp_path, COLOCATED)
    with pytest.raises(Stopped) as stopped:
        list(iterate(wanted, no_digits, Signal(stage, number, signum)))
    assert stopped.value.exit_code == 128 + signum
    assert str(stopped.value).endswith(said), stopped.value
    assert "Committed: 0 of 1 rounds; of " in str(stopped.value)
    assert not half_written(tmp_path)
    kept = parts(tmp_path)
    assert len(list(iterate(wanted, no_digits))) == 1
    assert kept.items() <= parts(tmp_path).items()
    assert_same(tmp_path, undisturbed, 1)


def test_a_second_signal_ends_a_round_at_once(toy: Toy, tmp_path: Path, undisturbed: Path) -> None:
    wanted = rounds_config(toy, tmp_path, COLOCATED)
    with pytest.raises(Stopped, match="1 part of generations"):
        list(iterate(wanted, no_digits, Signal("generate", 5 + 1, signal.SIGTERM, times=2)))
    assert not half_written(tmp_path)


@pytest.mark.slow
def test_samples_that_are_made_ahead_are_kept(toy: Toy, tmp_path: Path, machine: None) -> None:
    """The trainers of round 0 and the judge of round 1 are at work in two threads when the signal comes."""
    in_work = threading.Event()
    asked: list[str] = []
    waits = {8 + 1}  # at the first prompt of round 1, once

    def judge(prompt: str, responses: list[str]) -> list[float]:
        asked.append(prompt)
        if len(asked) in waits:
            waits.clear()
            in_work.set()
            waiter = threading.Event()
            while not requested():
                waiter.wait(0.01)
        return no_digits(prompt, responses)

    class AtFirstStep(Signal):
        def __call__(self, event: Event) -> None:
            if isinstance(event, Advanced) and event.stage == "train":
                assert in_work.wait(driver.PATIENCE_S)
            super().__call__(event)

    folder, undisturbed = tmp_path / "stopped", tmp_path / "undisturbed"
    with pytest.raises(Stopped) as stopped:
        list(iterate(rounds_config(toy, folder, SPLIT), judge, AtFirstStep("train", 1, signal.SIGTERM)))
    assert "step 1 of its training; of round 1 prompts, " in str(stopped.value)
    assert not half_written(folder)
    kept = parts(folder)
    assert sum("001/generations" in name for name in kept) == 2
    assert sum("001/scores" in name for name in kept) == 1
    for each in (folder, undisturbed):
        assert len(list(iterate(rounds_config(toy, each, SPLIT), judge))) == 2
    assert kept.items() <= parts(folder).items()
    assert_same(folder, undisturbed, 2)
