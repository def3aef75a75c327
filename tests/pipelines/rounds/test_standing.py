"""Roles beside the trainers stand over all rounds: counted, with the numbers of roles that are started for each turn."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raydpo.data import columns_read
from raydpo.driver import room_to_stand
from raydpo.pipelines import iterate
from raydpo.rounds.loop_sight import PHASES
from raydpo.schema.events import Advanced, Event
from tests.pipelines import driver
from tests.pipelines.rounds.test_deaths import measured
from tests.pipelines.rounds.toy_rounds import no_digits, pairs, rounds_config
from tests.pipelines.toy import Notes, Toy, weights

pytestmark = pytest.mark.slow

NUM_ROUNDS = 3
FEW: dict[str, Any] = {
    "rounds.num_rounds": NUM_ROUNDS,
    "rounds.prompts_per_round": 8,
    "rounds.reference": "ema",
    "reference.rows_per_shard": 8,
}


def run(toy: Toy, name: str, changes: dict[str, Any] | None = None, observer: Any = None) -> Path:
    """With a cache of its own, in the folder of the run; the judge is in this process."""
    folder = toy.root / name
    given = {**FEW, "reference.cache_dir": str(folder / "cache"), **(changes or {})}
    config = rounds_config(toy, folder, given).model_copy(update={"judge": None})
    assert len(list(iterate(config, judge=no_digits, observer=observer or Notes()))) == NUM_ROUNDS
    return folder


def shards(folder: Path) -> dict[str, bytes]:
    """Without what a worker that was killed had half written."""
    found = (folder / "cache").glob("*/shards/*.arrow")
    return {path.name: path.read_bytes() for path in found if not path.name.startswith(".")}


def assert_same(folder: Path, other: Path, *, is_measured: bool = True) -> None:
    """Values, pairs, weights and measures of all rounds, bit for bit."""
    assert shards(folder) == shards(other)
    for index in range(NUM_ROUNDS):
        assert pairs(folder, index) == pairs(other, index)
        assert weights(folder / f"rounds/{index:03d}/train/model") == weights(other / f"rounds/{index:03d}/train/model")
    if is_measured:
        for found, expected in zip(measured(folder), measured(other), strict=True):
            assert found == expected


def ledger(folder: Path) -> tuple[Any, ...]:
    summary = json.loads((folder / "summary.json").read_text())
    return tuple(summary[name] for name in ("standing", "starts", "model_loads", "updates_in_place"))


@pytest.fixture(scope="module")
def readers() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that were started to read columns, which end as soon as nobody asks for more."""
    found: list[subprocess.Popen[bytes]] = []
    start = columns_read._started

    def started() -> subprocess.Popen[bytes]:
        found.append(start())
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns_read.column_child, "IDLE_S", 0.02)
        patch.setattr(columns_read, "_started", started)
        yield found


@pytest.fixture(scope="module")
def undisturbed(toy: Toy, machine: None, readers: list[subprocess.Popen[bytes]]) -> Path:
    columns_read._idle.clear()
    return run(toy, "standing")


def test_the_process_that_reads_pairs_starts_once_however_long_a_round_is(
    undisturbed: Path, readers: list[subprocess.Popen[bytes]]
) -> None:
    (reader,) = readers
    assert reader.returncode is not None, "it ended with the run"


def test_each_role_starts_and_loads_once(undisturbed: Path) -> None:
    standing, starts, loads, updates = ledger(undisturbed)
    assert all(standing.values())
    once = dict.fromkeys(("generate", "train", "reference", "initial policy", "reference of a round"), 1)
    assert starts == {**once, "export proof": 1}
    assert loads == {**once, "export proof": NUM_ROUNDS}, "each export is loaded again, as anybody would"
    # Averages came for the rounds after the first one; held-out answers are compared with one other from the second on.
    later = dict.fromkeys(("train", "reference"), NUM_ROUNDS - 1)
    assert updates == {"generate": NUM_ROUNDS, **later, "reference of a round": NUM_ROUNDS - 2}


def test_each_round_says_where_its_time_went(undisturbed: Path) -> None:
    rounds = json.loads((undisturbed / "summary.json").read_text())["rounds"]
    assert len(rounds) == NUM_ROUNDS
    for loop in (found["loop"] for found in rounds):
        phases = [loop[f"{name}_s"] for name in PHASES]
        assert sum(phases) <= loop["wall_s"], "colocated roles take turns"
        assert all(loop[f"{name}_s"] > 0 for name in PHASES if name != "waiting")
        assert loop["sampled_tokens_per_s"] > 0
        assert 0 < loop["busy/train"] < 1
        assert 0 < loop["busy/generate"] < 1


def test_without_room_they_are_started_each_time_and_nothing_else_is_different(
    toy: Toy, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = Notes()
    monkeypatch.setattr(room_to_stand, "free_bytes", lambda device: 1000)
    folder = run(toy, "not-standing", observer=notes)
    standing, starts, loads, updates = ledger(folder)
    (judge,) = [role for role, is_so in standing.items() if is_so]
    assert (judge, len(standing)) == ("judge", 5), "the judge has no model"
    again = {
        "train": NUM_ROUNDS,
        "reference": NUM_ROUNDS,
        "initial policy": NUM_ROUNDS,
        "reference of a round": NUM_ROUNDS - 1,
    }
    assert starts == loads == {"generate": 1, **again}
    assert updates == {"generate": NUM_ROUNDS}
    said = [text for text in notes.info if "started for each of their turns" in text]
    assert len(said) == 1
    assert "0.0 GB are free" in said[0]
    assert_same(folder, undisturbed)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="float32"),
        pytest.param(
            {"model.dtype": "bfloat16", "rounds.optimizer": "carried", "train.schedule": "constant"}, id="carried"
        ),
    ],
)
def test_trainers_score_the_reference_that_they_start_from_as_workers_do(
    toy: Toy, machine: None, changes: dict[str, Any]
) -> None:
    name = f"own-start-{len(changes)}"
    changes = {**changes, "rounds.reference": "previous_round"}
    by_workers = run(toy, f"{name}-workers", {**changes, "reference.weights": "whole"})
    by_trainers = run(toy, f"{name}-trainers", changes)
    assert_same(by_trainers, by_workers)
    assert len(shards(by_trainers)) >= NUM_ROUNDS
    (_, starts, _, updates), (_, starts_beside, _, updates_beside) = map(ledger, (by_trainers, by_workers))
    assert starts_beside == {**starts, "reference": 1}
    assert updates_beside == {**updates, "reference": NUM_ROUNDS - 1}


def test_split_stands_with_processes_and_a_dead_worker_is_replaced_by_one_with_the_right_weights(
    toy: Toy, undisturbed: Path
) -> None:
    """It dies after the first shard of the third round, whose reference came in place; so does the one of the proof."""
    killed, seen = [], 0

    def observer(event: Event) -> None:
        nonlocal seen
        if isinstance(event, Advanced) and event.stage == "reference":
            seen += event.done == 8
            if seen == NUM_ROUNDS and not killed:
                *_, scorer, prover = driver.by_age("PoolActor")
                for pid in (scorer, prover):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    changes = {"rounds.placement": "split", "rounds.max_staleness": 0, "rounds.eval_prompts": []}
    folder = run(toy, "standing-split", changes, observer)
    assert killed
    standing, starts, loads, updates = ledger(folder)
    assert all(standing.values())
    assert starts == {"generate": 1, "train": 1, "reference": 2, "export proof": 2}
    assert loads == {**starts, "export proof": NUM_ROUNDS}
    later = dict.fromkeys(("train", "reference"), NUM_ROUNDS - 1)
    assert updates == {"generate": NUM_ROUNDS, **later}, "the new one began with the newest average"
    assert_same(folder, undisturbed, is_measured=False)
