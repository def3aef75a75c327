"""Rounds with trainers that stand are rounds with fresh ones, byte for byte, and start and load once."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from raydpo.config import Config
from raydpo.driver import standing_trainers
from raydpo.driver.generators import Generators
from raydpo.errors import Cause, WorkerError
from raydpo.pipelines import iterate
from raydpo.runtime import Gang
from raydpo.schema.shared_weights import SharedWeights
from tests.pipelines.rounds.toy_rounds import pairs, rounds_config
from tests.pipelines.toy import Notes, Toy, metrics

pytestmark = pytest.mark.slow

SHORT: dict[str, Any] = {
    "rounds.num_rounds": 3,
    "rounds.prompts_per_round": 8,
    "rounds.eval_prompts": [],
    "train.schedule": "constant",
}
CARRIED = {"rounds.optimizer": "carried", "train.global_batch_pairs": 64}
CASES: dict[str, dict[str, Any]] = {
    "float32 from the previous round": {"rounds.reference": "previous_round"},
    "stage 3 in bfloat16 carried": {"model.dtype": "bfloat16", "train.zero_stage": 3, **CARRIED},
    "two ranks carried": {"train.zero_stage": 1, "train.num_workers": 2, **CARRIED},
    "lora": {"train.lora": {"rank": 2, "alpha": 4}},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_rounds_are_those_of_trainers_that_start_anew(
    toy: Toy, machine: None, tmp_path: Path, changes: dict[str, Any]
) -> None:
    standing, fresh = (rounds_config(toy, tmp_path / name, {**SHORT, **changes}) for name in ("standing", "fresh"))
    assert len(list(iterate(standing))) == 3
    for _ in range(3):  # a driver for each round
        attempt = iterate(fresh)
        done = next(attempt)
        while (Path(fresh.run.dir) / f"rounds/{done.index + 1:03d}").is_dir():
            done = next(attempt)
        attempt.close()
    list(iterate(fresh))
    for index in range(3):
        assert pairs(tmp_path / "standing", index) == pairs(tmp_path / "fresh", index)
        ours, theirs = (tmp_path / name / f"rounds/{index:03d}/train" for name in ("standing", "fresh"))
        assert metrics(ours) == metrics(theirs)
        assert files_of(ours) == files_of(theirs)
    ranks = standing.train.ranks[0]
    of_trainers = {name: by_role["train"] for name, by_role in counts(standing).items()}
    assert of_trainers == {"starts": ranks, "model_loads": ranks, "updates_in_place": 2 * ranks}


def test_a_rank_that_dies_between_two_rounds_costs_a_start_and_no_number(
    toy: Toy, processes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gangs: list[Gang] = []
    honest = standing_trainers.trainer_gang

    def watched(*args: Any, **options: Any) -> Gang:
        gangs.append(honest(*args, **options))
        return gangs[-1]

    monkeypatch.setattr(standing_trainers, "trainer_gang", watched)
    changes = {**SHORT, **CARRIED, "rounds.num_rounds": 2, "run.runtime_in_process": False}
    calm, struck = (rounds_config(toy, tmp_path / name, changes) for name in ("calm", "struck"))
    list(iterate(calm))
    notes = Notes()
    attempt = iterate(struck, observer=notes)
    next(attempt)
    os.kill(gangs[-1].places[0].pid, signal.SIGKILL)
    list(attempt)
    assert any("died while it stood idle" in text and "failure 1 of 3" in text for text in notes.warning)
    ours, theirs = (tmp_path / name / "rounds/001/train" for name in ("struck", "calm"))
    assert metrics(ours) == metrics(theirs)
    assert files_of(ours) == files_of(theirs)
    assert [counts(config)["starts"]["train"] for config in (calm, struck)] == [1, 2]
    assert all(gang.is_closed for gang in gangs)


def test_a_training_that_is_left_in_the_middle_ends_the_ranks_and_the_next_starts_others(
    toy: Toy, machine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, taken = Generators.take, []

    def failing(self: Generators, shared: SharedWeights, version: int) -> None:
        taken.append(version)
        if len(taken) > 1:
            honest(self, shared, version)
            return
        self.leave(shared)
        raise WorkerError("generate: all died", Cause.KILLED)

    monkeypatch.setattr(Generators, "take", failing)
    config = rounds_config(toy, tmp_path / "left", {**SHORT, "rounds.num_rounds": 2})
    assert len(list(iterate(config))) == 2
    assert taken == [1, 2]
    assert {name: by_role["train"] for name, by_role in counts(config).items() if "train" in by_role} == {
        "starts": 2,
        "model_loads": 2,
    }


def files_of(folder: Path) -> dict[str, bytes]:
    """What a round's training leaves: models, adapters, and the state of its last steps. The run's own name is left out."""
    names = ("model", "model_merged", "checkpoints")
    return {
        str(path.relative_to(folder)): path.read_bytes().replace(str(folder.parents[2]).encode(), b"")
        for name in names
        for path in sorted((folder / name).rglob("*"))
        if path.is_file() and path.name not in ("manifest.json", "README.md") and "probe" not in path.name
    }


def counts(config: Config) -> dict[str, Any]:
    summary = json.loads((Path(config.run.dir) / "summary.json").read_text())
    return {name: summary[name] for name in ("starts", "model_loads", "updates_in_place")}
