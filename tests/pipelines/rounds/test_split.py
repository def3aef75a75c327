"""`placement: split`: who samples when, and that trainers never wait for generators."""

from __future__ import annotations

import json
from concurrent.futures import Future
from pathlib import Path
from threading import Event as Flag
from typing import Any

import pytest

from raydpo.driver.generators import Generators
from raydpo.driver.weight_sync import Push
from raydpo.errors import ResourceError
from raydpo.pipelines import iterate
from raydpo.schema.events import Event, Note, ignore
from raydpo.schema.rank_events import WeightsPart
from raydpo.schema.shared_weights import SharedWeights
from tests.pipelines.rounds.toy_rounds import generations, no_digits, rounds_config
from tests.pipelines.toy import Notes, Toy

pytestmark = pytest.mark.slow

SPLIT = {
    "rounds.placement": "split",
    "rounds.num_rounds": 3,
    "rounds.eval_prompts": [],
    "rounds.prompts_per_round": 8,
}
DEADLINE_S = 900
"""Of a judge that waits for the trainers: it ends a test that would hang."""


def versions(folder: Path) -> list[set[int]]:
    return [{row["version"] for row in generations(folder, index)} for index in range(3)]


def test_trainers_do_not_wait_for_samples_of_the_next_round(
    toy: Toy, machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge of round 1 answers only after the trainers of round 0 have pushed their weights."""
    folder, notes, pushed, asked, sent = toy.root / "split", Notes(), Flag(), [], set()

    def observer(event: Event) -> None:
        notes(event)
        if isinstance(event, Note) and "when the weights of policy 1 came" in event.text:
            pushed.set()

    def judge(prompt: str, responses: list[str]) -> list[float]:
        asked.append(prompt)
        if len(asked) == 9 and not pushed.wait(DEADLINE_S):
            raise TimeoutError("the trainers wait for the judge")
        return no_digits(prompt, responses)

    def take(self: Generators, shared: SharedWeights, version: int) -> None:
        sent.add(version)
        original(self, shared, version)

    original = Generators.take
    monkeypatch.setattr(Generators, "take", take)
    config = rounds_config(toy, folder, SPLIT).model_copy(update={"judge": None})
    found = list(iterate(config, judge=judge, observer=observer))
    assert [each.staleness for each in found] == [0, 1, 1]
    assert versions(folder) == [{0}, {0}, {1}]
    assert 1 not in sent, "read from its folder"
    assert 3 in sent, "nobody sampled during the last round"
    held = [text.split(":")[0] for text in notes.info if "generator holds" in text]
    assert held == [f"1 generator holds policy {version}" for version in (1, 2, 3)], "compared either way"
    assert all((each.folder / "probe.json").is_file() for each in found)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["placement"] == "split"
    assert set(summary["busy_share"]) == {"generate", "judge", "train"}
    assert all(0 < share < 1 for share in summary["busy_share"].values())


def test_without_staleness_nothing_is_sampled_ahead(toy: Toy, machine: None) -> None:
    folder = toy.root / "split-fresh"
    found = list(iterate(rounds_config(toy, folder, {**SPLIT, "rounds.max_staleness": 0})))
    assert [each.staleness for each in found] == [0, 0, 0]
    assert versions(folder) == [{0}, {1}, {2}]


def test_split_needs_room_for_all_that_work_at_once(toy: Toy, machine: None) -> None:
    changes = {"rounds.placement": "split", "generate.num_workers": 4}
    with pytest.raises(ResourceError, match=r"split runs generators and judge \(4 cpus\) next to train \(1 cpus\)"):
        next(iterate(rounds_config(toy, toy.root / "no-room", changes)))


class Receiver:
    """What a `Push` knows of generators."""

    shares_gpus = False

    def __init__(self) -> None:
        self.parts: list[bool] = []
        self.files: list[str] = []

    def receive(self, part: WeightsPart, version: int) -> None:
        assert version == 7
        self.parts.append(part.is_last)

    def take(self, shared: SharedWeights, version: int) -> None:
        assert (shared, version) == (FILE, 7)
        self.files.append("taken")

    def leave(self, shared: SharedWeights) -> bool:
        assert shared == FILE
        self.files.append("removed")
        return True


FILE = SharedWeights("/dev/shm/raydpo-weights-0", "0", (), 64)
PARTS = [WeightsPart({}, is_last) for is_last in (False, False, True)]


def push_to(receiver: Any, *producers: Future[Any]) -> Push:
    return Push(receiver, 7, producers, ignore)


def test_a_push_goes_to_generators_that_are_free() -> None:
    done: Future[Any] = Future()
    done.set_result(None)
    for producers in ((), (done,), (done, done)):
        receiver = Receiver()
        push = push_to(receiver, *producers)
        for part in PARTS:
            push.receive(part)
        push.receive(FILE)
        assert receiver.parts == [False, False, True]
        assert receiver.files == ["taken"]


def test_a_push_that_began_while_they_were_at_work_is_left_out_as_a_whole() -> None:
    receiver, producer = Receiver(), Future[Any]()
    push = push_to(receiver, producer)
    push.receive(PARTS[0])
    producer.set_result(None)
    for part in PARTS[1:]:
        push.receive(part)
    assert receiver.parts == []
    receiver.files, producer = [], Future()
    push_to(receiver, producer).receive(FILE)
    assert receiver.files == ["removed"], "nobody takes it"
    for part in PARTS:  # of trainers that started again
        push.receive(part)
    assert receiver.parts == [False, False, True]


def test_a_push_is_left_out_where_generators_failed_or_are_stopped() -> None:
    """Where their requests failed, some may still be under way."""
    done, failed = Future[Any](), Future[Any]()
    done.set_result(None)
    failed.set_exception(RuntimeError())
    receiver, stopped = Receiver(), Receiver()
    stopped.shares_gpus = True
    for push in (push_to(receiver, done, failed), push_to(stopped)):
        for part in PARTS:
            push.receive(part)
        push.receive(FILE)
    assert receiver.parts == stopped.parts == []
    assert receiver.files == stopped.files == ["removed"]
