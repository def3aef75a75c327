"""`rounds.save_every`: fewer policies on disk, the same numbers, also after a kill where none was saved."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raydpo import runtime
from raydpo.artifacts import shared_files, shared_folder
from raydpo.config import Config
from raydpo.config.render import dump
from raydpo.driver import standing_trainers
from raydpo.errors import IntegrityError, Stopped
from raydpo.pipelines import iterate
from raydpo.rounds import kept_policies
from raydpo.rounds.run import Round
from raydpo.rounds.save_choice import memory_for
from raydpo.rounds.setup import set_up
from raydpo.runtime import Gang
from raydpo.schema.events import Advanced, Event
from tests.pipelines.rounds.toy_rounds import pairs, rounds_config
from tests.pipelines.toy import Notes, Toy, flip_byte, weights

pytestmark = pytest.mark.slow

NUM_ROUNDS = 5
SHORT: dict[str, Any] = {
    "rounds.num_rounds": NUM_ROUNDS,
    "rounds.prompts_per_round": 4,
    "rounds.eval_prompts": [],
    "train.global_batch_pairs": 4,
    "train.schedule": "constant",
}
HELD_OUT: dict[str, Any] = {"rounds.eval_prompts": True}
"""Some; `config_of` says which."""
CASES: dict[str, dict[str, Any]] = {
    "fresh": {"rounds.reference": "previous_round", **HELD_OUT},
    "carried": {"rounds.optimizer": "carried", "model.dtype": "bfloat16"},
}
SAVED = {1: [0, 1, 2, 3, 4], 2: [1, 3, 4], 100: [4]}
"""save_every -> rounds that are on disk."""


def config_of(toy: Toy, folder: Path, every: int, changes: dict[str, Any]) -> Config:
    prompts = toy.root / "few.jsonl"
    prompts.write_text("".join(toy.eval.read_text().splitlines(keepends=True)[:2]))
    held_out = [str(prompts)] if "rounds.eval_prompts" in changes else []
    return rounds_config(toy, folder, {**SHORT, **changes, "rounds.eval_prompts": held_out, "rounds.save_every": every})


def models(folder: Path) -> list[int]:
    return [int(path.parts[-3]) for path in sorted(folder.glob("rounds/*/train/model"))]


def weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "rounds").rglob("*.safetensors"))


def kept() -> list[Path]:
    return sorted(shared_files.SHARED_MEMORY.glob(f"{shared_folder.PREFIX}*"))


def attempt(config: Config, number: int, monkeypatch: pytest.MonkeyPatch, notes: Notes) -> list[Round]:
    """`number` rounds of an attempt that ends without saving what it has in memory."""
    with monkeypatch.context() as patched:
        patched.setattr(kept_policies, "_save_policy", lambda *_: False)
        rounds = iterate(config, observer=notes)
        found = list(itertools.islice(rounds, number))
        rounds.close()  # type: ignore[attr-defined]
    return found


@pytest.fixture(scope="module", params=CASES, ids=str)
def undisturbed(request: pytest.FixtureRequest, toy: Toy, machine: None) -> tuple[Path, dict[str, Any]]:
    changes = CASES[request.param]
    folder = toy.root / f"every-round-{request.param}"
    assert len(list(iterate(config_of(toy, folder, 1, changes)))) == NUM_ROUNDS
    return folder, changes


@pytest.mark.parametrize("every", [2, 100])
def test_the_same_rounds_with_fewer_policies_on_disk(
    toy: Toy, undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path, every: int
) -> None:
    calm, changes = undisturbed
    rounds = list(iterate(config_of(toy, tmp_path / "run", every, changes)))
    newest = [max((index for index in SAVED[every] if index <= number), default=-1) for number in range(NUM_ROUNDS)]
    assert [found.model_round for found in rounds] == newest
    for found in rounds:
        saved = tmp_path / f"run/rounds/{found.model_round:03d}/train/model"
        assert found.model == (saved if found.model_round >= 0 else toy.model)
    assert models(tmp_path / "run") == SAVED[every]
    assert models(calm) == SAVED[1]
    assert weight_bytes(tmp_path / "run") < weight_bytes(calm)
    assert_same_run(tmp_path / "run", calm)
    records = [path.parts[-3] for path in tmp_path.glob("run/rounds/*/train/metrics.jsonl")]
    assert sorted(records) == [f"{index:03d}" for index in range(NUM_ROUNDS)]
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert [found["model_round"] for found in summary["rounds"]] == newest
    assert not kept()


def test_after_a_kill_rounds_that_were_not_saved_are_trained_again(
    toy: Toy, undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    calm, changes = undisturbed
    config = config_of(toy, tmp_path / "run", 100, changes)
    file = tmp_path / "rounds.yaml"
    file.write_text(dump(config))
    program = (
        "import os, signal, sys; from pathlib import Path; from raydpo.config.load import load; "
        "from raydpo.pipelines import iterate; rounds = iterate(load(Path(sys.argv[1]), verb='iterate').config); "
        "[next(rounds) for _ in range(3)]; os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(file)], capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert models(tmp_path / "run") == []
    (left,) = (path for path in kept() if path.is_dir())
    before = [stamps(tmp_path / "run", index) for index in range(3)]
    (part,) = tmp_path.glob("run/rounds/001/pairs/part-*")
    flip_byte(part)
    with pytest.raises(IntegrityError, match=r"round 1 has to be trained again from it.*Remove the folders of round 1"):
        list(iterate(config))
    flip_byte(part)
    before[1] = stamps(tmp_path / "run", 1)
    notes = Notes()
    rounds = list(iterate(config, observer=notes))
    text = "not saved: rounds 0, 1, 2; they are trained again from their pairs, and nothing is sampled again"
    assert notes.info.count(text) == 1
    assert [stamps(tmp_path / "run", index) for index in range(3)] == before
    assert models(tmp_path / "run") == [2, 4], "the newest of those that are trained again is saved"
    assert [found.model_round for found in rounds] == [-1, -1, -1, 2, 4], "as it was when each was yielded"
    assert_same_run(tmp_path / "run", calm)
    assert not left.exists()


def stamps(folder: Path, index: int) -> dict[str, tuple[int, int]]:
    """Files of the committed pieces of a round, which nobody may write again."""
    places = [folder / f"rounds/{index:03d}" / name for name in ("generations", "scores", "pairs", "summary")]
    files = [path for place in places for path in place.iterdir()]
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def assert_same_run(folder: Path, calm: Path) -> None:
    for index in range(NUM_ROUNDS):
        assert pairs(folder, index) == pairs(calm, index)
    measured = [json.loads((each / "summary.json").read_text()) for each in (folder, calm)]
    ours, theirs = ([found["metrics"] for found in each["rounds"]] for each in measured)
    assert ours == theirs
    for index in models(folder):
        model = f"rounds/{index:03d}/train/model"
        assert weights(folder / model) == weights(calm / model)


def test_trainers_that_die_in_an_unsaved_stretch_go_on_from_the_newest_saved_round(
    toy: Toy, undisturbed: tuple[Path, dict[str, Any]], processes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm, changes = undisturbed
    gangs: list[Gang] = []
    honest = standing_trainers.trainer_gang

    def watched(*args: Any, **options: Any) -> Gang:
        gangs.append(honest(*args, **options))
        return gangs[-1]

    monkeypatch.setattr(standing_trainers, "trainer_gang", watched)
    changes = {**changes, "run.runtime_in_process": False}
    notes = Notes()
    rounds = iterate(config_of(toy, tmp_path / "run", 100, changes), observer=notes)
    for _ in range(3):
        next(rounds)
    os.kill(gangs[-1].places[0].pid, signal.SIGKILL)
    list(rounds)
    assert len(gangs) == 2
    is_carried = "rounds.optimizer" in changes
    assert any("not saved: rounds 0, 1, 2;" in text for text in notes.info) == is_carried
    assert models(tmp_path / "run") == ([2, 4] if is_carried else [4]), "without state the folder in memory is enough"
    assert_same_run(tmp_path / "run", calm)


def test_a_run_that_is_told_to_end_saves_its_newest_policy(
    toy: Toy, undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the same command with another number, with fewer rounds, and with all of them."""
    calm, changes = undisturbed
    found: list[Round] = []

    def signal_in_the_third_training(event: Event) -> None:
        if isinstance(event, Advanced) and event.stage == "train" and len(found) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    rounds = iterate(config_of(toy, tmp_path / "run", 100, changes), observer=signal_in_the_third_training)
    with pytest.raises(Stopped, match="2 of 5 rounds"):
        list(map(found.append, rounds))
    assert [each.model_round for each in found] == [-1, -1]
    assert not kept()
    assert models(tmp_path / "run") == [1]
    notes = Notes()
    found = attempt(config_of(toy, tmp_path / "run", 100, changes), 4, monkeypatch, notes)
    is_carried = "rounds.optimizer" in changes
    assert any("not saved: rounds 0, 1;" in text for text in notes.info) == is_carried
    assert [each.model_round for each in found] == [-1, 1, 1, 1]
    fewer = list(iterate(config_of(toy, tmp_path / "run", 100, {**changes, "rounds.num_rounds": 4})))
    assert fewer[-1].model == tmp_path / "run/rounds/003/train/model"
    assert weights(fewer[-1].model) == weights(calm / "rounds/003/train/model")
    list(iterate(config_of(toy, tmp_path / "run", 1, changes)))
    assert_same_run(tmp_path / "run", calm)


OLDER: dict[str, dict[str, Any]] = {
    "semi-online": {"rounds.sync_every": 3},
    "split carried": {"rounds.placement": "split", "run.runtime_in_process": False, **CASES["carried"]},
}


@pytest.mark.parametrize("changes", OLDER.values(), ids=OLDER.keys())
def test_an_older_policy_that_samples_is_made_again_too(
    toy: Toy, processes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    calm, config = (config_of(toy, tmp_path / name, every, changes) for name, every in (("calm", 1), ("run", 2)))
    list(iterate(calm))
    notes = Notes()
    assert [each.model_round for each in attempt(config, 4, monkeypatch, notes)] == [-1, 1, 1, 3]
    list(iterate(config, observer=notes))
    assert any("not saved: rounds 2;" in text for text in notes.info), "round 4 is sampled by what round 2 made"
    assert_same_run(tmp_path / "run", tmp_path / "calm")


def test_the_round_at_which_a_rule_stops_is_saved(toy: Toy, machine: None, tmp_path: Path) -> None:
    changes = {**HELD_OUT, "rounds.min_mean_score": 1e9}
    (found,) = iterate(config_of(toy, tmp_path / "run", 100, changes))
    assert found.stopped
    assert (found.model, found.model_round) == (tmp_path / "run/rounds/000/train/model", 0)
    assert (found.model / "model.safetensors").is_file()


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "ema": ({"rounds.reference": "ema"}, "", "an average of the policies is written in every round"),
    "lora": (
        {"train.lora": {"rank": 2, "alpha": 4}},
        "",
        "the adapter of a round is one of the model of the round before",
    ),
    "no trainers": (CASES["carried"], "generators wait for the GPUs of train", "these do not (generators wait for"),
    "compile": ({**CASES["carried"], "train.compile": True}, "", "these do not (train.compile)"),
    "samplers": ({**CASES["carried"], "rounds.sync_every": 3}, "", "an older policy, which may sample"),
}


@pytest.mark.parametrize(("changes", "hindrance", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_every_round_is_saved_where_a_policy_would_be_needed_elsewhere(
    toy: Toy, machine: None, tmp_path: Path, changes: dict[str, Any], hindrance: str, said: str
) -> None:
    notes = Notes()
    setup = set_up(config_of(toy, tmp_path / "run", 3, changes), None, notes)
    assert memory_for(setup, hindrance, notes) is None
    (text,) = (text for text in notes.warning if "rounds.save_every" in text)
    assert text.startswith("rounds.save_every: 3, and every round is saved: ")
    assert said in text


def test_other_nodes_and_too_little_memory_are_said_too(
    toy: Toy, machine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = Notes()
    setup = set_up(config_of(toy, tmp_path / "run", 3, {}), None, notes)
    folder = memory_for(setup, "", notes)
    assert folder is not None
    folder.close()
    monkeypatch.setattr(shared_files, "SHARED_MEMORY", tmp_path / "none")
    assert memory_for(setup, "", notes) is None
    monkeypatch.setattr(runtime, "count_nodes", lambda: 2)
    assert memory_for(setup, "", notes) is None
    assert "No such file or directory" in notes.warning[-2]
    assert "there are 2 nodes" in notes.warning[-1]
