"""Sight of the loop: times of phases on a clock that costs set, who waited, and the change that would balance it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raydpo.config import Config
from raydpo.driver.busy import Busy
from raydpo.driver.queue_depth import QueueDepth
from raydpo.rounds.loop_sight import PHASES, LoopSight, imbalance
from raydpo.schema.events import Note, StageDone, StageStarted
from raydpo.schema.samples import Generated, Sample
from tests.pipelines.rounds.toy_rounds import rounds_config
from tests.pipelines.toy import Notes, Toy


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def split(toy: Toy, changes: dict[str, Any] | None = None) -> Config:
    given = {"rounds.placement": "split", "rounds.num_rounds": 6, "generate.num_workers": 2, **(changes or {})}
    return rounds_config(toy, Path("unused"), given)


def a_round(
    sight: LoopSight, clock: Clock, busy: Busy, index: int, waiting_s: float, sample_s: float
) -> dict[str, float]:
    """A round of 10 s: sampled ahead, waited for, 1 s of reference within 4 s, the rest evaluated."""
    with sight.phase(index, "sample"):
        clock.now += sample_s
        busy.sampled(Generated(((Sample(tuple(range(1000)), "", "eos"),),), index, 0.0))
    clock.now -= sample_s  # by the other thread
    sight.begin(index)
    with sight.phase(index, "waiting"):
        clock.now += waiting_s
    with sight.phase(index, "train"):
        hear = sight.training(index, sight._observer)
        hear(StageDone("data", "read"))
        hear(StageStarted("reference", 3, "rows"))
        clock.now += 1
        hear(StageDone("reference", "3 rows"))
        clock.now += 3
    busy.add("generate", 2 * sample_s)
    busy.add("train", 4)
    with sight.phase(index, "evaluate"):
        clock.now += 6 - waiting_s
    return sight.end(index)


def test_each_phase_has_its_own_seconds_and_roles_their_shares(toy: Toy) -> None:
    clock, busy, notes = Clock(), Busy(), Notes()
    sight = LoopSight(split(toy), busy, notes, clock)
    busy.add("judge", 50)  # before the round
    found = a_round(sight, clock, busy, 0, 1, 8)
    phases = {"sample_s": 8, "judge_s": 0, "reference_s": 1, "train_s": 3, "evaluate_s": 5, "waiting_s": 1}
    assert found == {
        "wall_s": 10,
        **phases,
        "sampled_tokens_per_s": 125,
        "busy/generate": 0.8,
        "busy/judge": 0,
        "busy/train": 0.4,
    }
    assert [f"{name}_s" for name in PHASES] == list(phases)
    assert len(notes.info) == 1
    assert notes.info[0].startswith(
        "round 0: 10.0 s: sample 8.0, judge 0.0, reference 1.0, train 3.0, evaluate 5.0, waiting"
    )
    assert "125 tokens/s sampled; busy: generate 80%" in notes.info[0]


def test_a_long_wait_is_told_once_and_not_of_the_first_round(toy: Toy) -> None:
    clock, busy, notes = Clock(), Busy(), Notes()
    sight = LoopSight(split(toy), busy, notes, clock)
    for index, waiting_s in enumerate([5.0, 1.9, 4.0, 5.0]):
        a_round(sight, clock, busy, index, waiting_s, 8)
    assert notes.warning == ["the trainers waited 40% of round 2; generate.num_workers: 4 (now 2) would balance it"]
    a_round(sight, clock, busy, 4, 0.0, 3)
    assert notes.warning[1:] == [
        "the generators waited 70% of round 4; generate.num_workers: 1 (now 2) would do, and what it frees can train"
    ]


def test_generators_that_have_nothing_left_to_make_are_not_told(toy: Toy) -> None:
    """Beside the last round nothing is sampled; with a staleness of 2 beside the last two."""
    for max_staleness, num_told in ((1, 1), (2, 0)):
        clock, busy, notes = Clock(), Busy(), Notes()
        sight = LoopSight(split(toy, {"rounds.max_staleness": max_staleness}), busy, notes, clock)
        for index in (3, 5, 4):
            a_round(sight, clock, busy, index, 0.0, 1)
        assert len(notes.warning) == num_told


def test_colocated_roles_take_turns_and_nobody_is_told_to_wait_less(toy: Toy) -> None:
    clock, busy, notes = Clock(), Busy(), Notes()
    sight = LoopSight(split(toy, {"rounds.placement": "colocated"}), busy, notes, clock)
    for index in range(3):
        a_round(sight, clock, busy, index, 5.0, 1)
    assert notes.warning == []


@pytest.mark.parametrize(
    ("found", "changes", "role", "share", "change"),
    [
        pytest.param(
            {"waiting_s": 5, "busy/generate": 0.6, "sample_s": 10, "judge_s": 1},
            {},
            "trainers",
            0.5,
            "generate.num_workers: 4 (now 2)",
            id="sampling",
        ),
        pytest.param(
            {"waiting_s": 4, "busy/generate": 0.7, "sample_s": 2, "judge_s": 6},
            {},
            "trainers",
            0.4,
            "judge.num_workers: 3 (now 1)",
            id="judging",
        ),
        pytest.param(
            {"waiting_s": 0, "busy/generate": 0.9, "sample_s": 9, "judge_s": 0},
            {},
            "generators",
            0.1,
            "train.num_workers: 2 (now 1)",
            id="training",
        ),
        pytest.param(
            {"waiting_s": 0, "busy/generate": 0.6, "sample_s": 4, "judge_s": 1},
            {"rounds.max_staleness": 0},
            "trainers",
            0.5,
            "rounds.max_staleness: 0",
            id="in turn",
        ),
    ],
)
def test_the_change_is_of_what_is_slow(
    toy: Toy, found: dict[str, float], changes: dict[str, Any], role: str, share: float, change: str
) -> None:
    who, waited, said = imbalance(split(toy, changes), {"wall_s": 10, **found})
    assert who == role
    assert waited == pytest.approx(share)
    assert change in said


def test_a_line_is_a_note(toy: Toy) -> None:
    clock, busy, seen = Clock(), Busy(), []
    sight = LoopSight(split(toy), busy, seen.append, clock)
    sight.begin(3)
    clock.now += 2
    found = sight.end(3)
    assert "sampled_tokens_per_s" not in found, "sampled by an earlier attempt"
    assert [type(event) for event in seen] == [Note]


def test_samples_of_an_earlier_attempt_are_no_speed_of_this_one(toy: Toy) -> None:
    """A round of which half was sampled before, and whose policy answers held-out prompts as well."""
    clock, busy = Clock(), Busy()
    sight = LoopSight(split(toy), busy, Notes(), clock)
    sight.begin(0)
    with sight.phase(0, "sample"):
        clock.now += 4
        busy.sampled(Generated(((Sample(tuple(range(500)), "", "eos"),),), 0, 4.0))
    with sight.phase(0, "evaluate"):
        clock.now += 6
        busy.sampled(Generated(((Sample(tuple(range(900)), "", "eos"),),), 0, 6.0))
    assert sight.end(0)["sampled_tokens_per_s"] == 125


def test_the_queue_of_a_round_is_that_of_its_sampling(toy: Toy) -> None:
    clock, busy, notes = Clock(), Busy(), Notes()
    depth = QueueDepth(clock)
    sight = LoopSight(split(toy), busy, notes, clock, depth)
    sight.begin(0)
    with sight.phase(0, "sample"):
        for waiting, seconds in ((3, 1), (1, 3), (0, 0)):
            depth.seen(waiting, min(waiting, 2))
            clock.now += seconds
    with sight.phase(0, "evaluate"):
        depth.seen(50, 2)
        clock.now += 9
    found = sight.end(0)
    assert {name: found[name] for name in found if name.startswith("requests")} == {
        "requests_waiting/mean": 1.5,
        "requests_waiting/most": 3,
        "requests_in_work/mean": 1.25,
        "requests_in_work/most": 2,
    }
    assert "; requests waiting 1.5 (at most 3), in work 1.2 (at most 2); busy" in notes.info[0]


def test_staleness_is_said_where_there_is_any(toy: Toy) -> None:
    clock, notes = Clock(), Notes()
    sight = LoopSight(split(toy), Busy(), notes, clock)
    said = []
    for ages in ({1: 12, 0: 36}, {0: 48}, {}):
        sight.begin(0)
        clock.now += 1
        found = sight.end(0, ages)
        assert {name: n for name, n in found.items() if "age" in name} == {
            f"pairs_of_age/{a}": n for a, n in ages.items()
        }
        said.append(notes.info[-1])
    assert "; staleness in versions: 0 (36 pairs), 1 (12 pairs); busy" in said[0]
    assert not [text for text in said[1:] if "staleness" in text]
