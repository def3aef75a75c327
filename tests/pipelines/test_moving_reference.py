"""A reference that follows the policy: its weights, its cache, the steps after an update, and kills at every turn.

One story for most tests, because its parts are expensive: five steps with an update after every second one, undisturbed,
and the same run ended by force three times and continued each time.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from raydpo.artifacts import read_commit, verify_folder
from raydpo.config import Config
from raydpo.config.render import dump
from raydpo.errors import ConfigError, ResumeError
from raydpo.pipelines import evaluate, train
from raydpo.quickstart.bpe import train_bpe
from raydpo.quickstart.fresh_model import create_model
from tests.pipelines import driver
from tests.pipelines.toy import (
    NUM_EVAL,
    NUM_ROWS,
    Notes,
    Toy,
    committed_shards,
    config,
    everything_in,
    flip_byte,
    metrics,
    nats_by_row,
    weights,
)

EVERY, ALPHA, BATCH, NUM_STEPS = 2, 0.6, 12, 5
ROWS_PER_SHARD = 1
LINE = {"step", "reference", "rows", "rows_scored", "forwards"}


def settings(toy: Toy, name: str) -> Config:
    changes = {
        "reference.cache_dir": str(toy.root / f"{name}-cache"),
        "reference.sync_every": EVERY,
        "reference.sync_alpha": ALPHA,
        "reference.rows_per_shard": ROWS_PER_SHARD,
        "reference.tokens_per_batch": 1,  # a forward a row, so that a kill finds scoring under way
        "train.global_batch_pairs": BATCH,
        "train.keep_checkpoints": 9,
        "train.warmup_fraction": 0.0,
        "train.schedule": "constant",
    }
    return config(toy, toy.root / name, changes)


@dataclass(frozen=True)
class Moved:
    dir: Path
    cache: Path
    config: Config
    summary: dict[str, Any]
    notes: Notes


@pytest.fixture(scope="module")
def moved(toy: Toy, machine: None) -> Moved:
    """The undisturbed run."""
    wanted, notes = settings(toy, "moved"), Notes()
    summary = train(wanted, notes)
    return Moved(toy.root / "moved", toy.root / "moved-cache", wanted, summary, notes)


@pytest.fixture
def copy(moved: Moved, tmp_path: Path) -> Config:
    """The run as it was after step 3, with its own cache."""
    run, cache = shutil.copytree(moved.dir, tmp_path / "run"), shutil.copytree(moved.cache, tmp_path / "cache")
    for place in ("checkpoints/step-000004", "checkpoints/step-000005", "references/step-000004", "model"):
        shutil.rmtree(run / place)
    return changed(moved.config, run=run, cache=cache)


def changed(wanted: Config, run: Path, cache: Path, **reference: Any) -> Config:
    values = wanted.model_dump()
    values["run"]["dir"], values["reference"]["cache_dir"] = str(run), str(cache)
    values["reference"] |= reference
    return Config.model_validate(values)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def checkpoint(run: Path, step: int) -> Path:
    return run / f"checkpoints/step-{step:06d}"


def reference(run: Path, step: int) -> Path:
    return run / f"references/step-{step:06d}"


def step_lines(run: Path) -> dict[int, dict[str, float]]:
    return {int(line["step"]): line for line in metrics(run) if "loss" in line}


def test_the_weights_are_the_mean_of_policy_and_reference_before(moved: Moved, toy: Toy) -> None:
    before = tensors(toy.model)
    for step in (2, 4):
        policy, found = tensors(checkpoint(moved.dir, step) / "model"), tensors(reference(moved.dir, step))
        assert found.keys() == policy.keys()
        for name, value in found.items():
            exact = ALPHA * policy[name].double() + (1 - ALPHA) * before[name].double()
            assert (value - exact).abs().max() <= 2**-23 * policy[name].abs().max()
            assert not policy[name].std() or (policy[name] - before[name]).abs().max() > 1e-4, "nothing moved"
        before = found
    assert sorted(path.name for path in (moved.dir / "references").iterdir()) == ["step-000002", "step-000004"]
    assert verify_folder(reference(moved.dir, 4)) == []


def test_each_update_has_a_cache_of_its_own_with_the_rows_of_its_steps(moved: Moved) -> None:
    syncs = moved.summary["reference"]["syncs"]
    assert [set(sync) for sync in syncs] == [LINE, LINE]
    assert [sync["step"] for sync in syncs] == [2, 4]
    assert [sync["rows"] for sync in syncs] == [2 * (2 * BATCH + NUM_EVAL), 2 * (BATCH + NUM_EVAL)]
    assert [sync["rows_scored"] for sync in syncs] == [sync["rows"] for sync in syncs]
    assert moved.summary["reference"]["rows_scored"] == NUM_ROWS
    trained = [read_commit(checkpoint(moved.dir, step))["meta"]["reference"] for step in range(1, NUM_STEPS + 1)]
    first, second, third = trained[0], syncs[0]["reference"], syncs[1]["reference"]
    assert trained == [first, first, second, second, third]
    caches = {path.name: nats_by_row(path) for path in moved.cache.iterdir()}
    assert caches.keys() == {first, second, third}
    everywhere = caches[first].keys() & caches[second].keys() & caches[third].keys()
    assert len(everywhere) >= 2 * NUM_EVAL
    assert all(len({rows[key] for rows in caches.values()}) == 3 for key in everywhere), "values of another reference"
    assert json.loads((moved.dir / "summary.json").read_text())["reference"]["syncs"] == syncs
    assert len([text for text in moved.notes.info if "reference was updated" in text]) == 2
    assert len([text for text in moved.notes.info if "agree with the policy" in text]) == 1, "the probe, at the start"


def test_rewards_start_at_0_after_a_hard_update(toy: Toy, moved: Moved, tmp_path: Path) -> None:
    hard, still = tmp_path / "hard", tmp_path / "still"
    shared = moved.config.reference.cache_dir
    hard_run = train(changed(moved.config, hard, Path(shared), sync_alpha=1.0))
    frozen = train(changed(moved.config, still, Path(shared), sync_every=None, sync_alpha=ALPHA))
    assert hard_run["reference"]["rows_scored"] == 0
    assert "syncs" not in frozen["reference"]
    assert not (still / "references").exists()
    for step in (1, 3, 5):
        line = step_lines(hard)[step]
        assert line["log_ratios/abs"] < 1e-4
        assert line["loss"] == pytest.approx(math.log(2), abs=1e-6)
    for step in (3, 5):
        soft, unmoved = step_lines(moved.dir)[step], step_lines(still)[step]
        assert unmoved["log_ratios/abs"] > soft["log_ratios/abs"] > 0.01
        assert unmoved["loss"] < math.log(2) - 1e-3
    for step in (1, 2):
        assert step_lines(still)[step] == step_lines(hard)[step] == step_lines(moved.dir)[step]
    assert tensors(reference(hard, 4)).keys() == tensors(checkpoint(hard, 4) / "model").keys()
    for name, value in tensors(checkpoint(hard, 4) / "model").items():
        assert torch.equal(value, tensors(reference(hard, 4))[name])


def test_a_finished_run_is_left_as_it_is(moved: Moved) -> None:
    seen = {name: everything_in(moved.dir / name) for name in ("checkpoints", "references")}
    shards = committed_shards(moved.cache)
    again = train(moved.config)
    assert again["train"]["resumed_from_step"] == NUM_STEPS
    assert again["reference"]["forwards"] == 0
    assert again["reference"]["syncs"] == moved.summary["reference"]["syncs"]
    assert again["eval"] == moved.summary["eval"]
    assert {name: everything_in(moved.dir / name) for name in seen} == seen
    assert committed_shards(moved.cache) == shards


def test_evaluate_measures_from_the_first_reference(moved: Moved) -> None:
    summary = evaluate(moved.config)
    assert summary["reference"]["forwards"] == 0
    first, last = summary["eval"]["last"], moved.summary["eval"]["last"]
    assert first["eval/logps/chosen"] == pytest.approx(last["eval/logps/chosen"], abs=1e-4)
    assert first["eval/log_ratios/abs"] > 2 * last["eval/log_ratios/abs"]


def test_a_run_without_an_update_says_so(toy: Toy, moved: Moved, tmp_path: Path) -> None:
    notes = Notes()
    wanted = changed(moved.config, tmp_path / "run", moved.cache, sync_every=NUM_STEPS)
    summary = train(wanted, notes)
    assert summary["reference"]["syncs"] == []
    assert [text for text in notes.warning if "the reference never moves" in text]


# Going on in a directory that lost something.


def test_a_lost_reference_is_made_again(moved: Moved, copy: Config) -> None:
    run = Path(copy.run.dir)
    flip_byte(reference(run, 2) / "model.safetensors")
    summary = train(copy)
    assert summary["train"]["resumed_from_step"] == 3
    assert summary["reference"]["rows_scored"] == 0
    assert [sync["reference"] for sync in summary["reference"]["syncs"]] == [
        sync["reference"] for sync in moved.summary["reference"]["syncs"]
    ]
    for step in (2, 4):
        assert weights(reference(run, step)) == weights(reference(moved.dir, step))
    assert weights(run / "model") == weights(moved.dir / "model")
    assert metrics(run) == metrics(moved.dir)


def test_a_lost_reference_whose_checkpoint_is_gone_is_an_error(copy: Config) -> None:
    run, shards = Path(copy.run.dir), committed_shards(Path(copy.reference.cache_dir))
    shutil.rmtree(reference(run, 2))
    shutil.rmtree(checkpoint(run, 2))
    written = (run / "config.yaml").read_bytes()
    with pytest.raises(ResumeError, match=r"the reference of step 2, and that cannot be used .* or made again"):
        train(copy)
    assert committed_shards(Path(copy.reference.cache_dir)) == shards
    assert (run / "config.yaml").read_bytes() == written


def test_another_reference_in_its_place_is_refused(copy: Config) -> None:
    """Whole, but of other weights: it was made by another run."""
    run = Path(copy.run.dir)
    tensor = tensors(reference(run, 2))
    shutil.rmtree(checkpoint(run, 2))
    flip_byte(reference(run, 2) / "model.safetensors")
    commit = json.loads((reference(run, 2) / "COMMIT.json").read_text())
    recommit(reference(run, 2), commit["meta"])
    assert verify_folder(reference(run, 2)) == []
    assert tensor.keys() == tensors(reference(run, 2)).keys()
    with pytest.raises(ResumeError, match="was trained against reference"):
        train(copy)


def recommit(folder: Path, meta: dict[str, Any]) -> None:
    from raydpo.artifacts import commit_folder

    staging = folder.with_name("staging")
    folder.rename(staging)
    (staging / "COMMIT.json").unlink()
    commit_folder(staging, folder, meta)


def test_a_reference_made_of_a_checkpoint_that_was_lost_is_made_anew(moved: Moved, copy: Config) -> None:
    """The newest checkpoint is that of the update; a reference of the same step is there, made of something else."""
    run = Path(copy.run.dir)
    shutil.rmtree(checkpoint(run, 3))
    commit = json.loads((reference(run, 2) / "COMMIT.json").read_text())
    flip_byte(reference(run, 2) / "model.safetensors")
    recommit(reference(run, 2), {**commit["meta"], "source": "another"})
    summary = train(copy)
    assert summary["train"]["resumed_from_step"] == 2
    assert weights(reference(run, 2)) == weights(reference(moved.dir, 2))
    assert weights(run / "model") == weights(moved.dir / "model")


def test_settings_of_the_update_belong_to_the_run(copy: Config) -> None:
    with pytest.raises(ResumeError) as caught:
        train(changed(copy, Path(copy.run.dir), Path(copy.reference.cache_dir), sync_every=3, sync_alpha=1.0))
    said = "\n".join(caught.value.problems)
    assert "reference.sync_every: 2 then, 3 now." in said
    assert "reference.sync_alpha: 0.6 then, 1.0 now." in said


def test_another_first_reference_is_refused(toy: Toy, moved: Moved, copy: Config) -> None:
    with pytest.raises(ResumeError, match="was trained against reference"):
        train(changed(copy, Path(copy.run.dir), Path(copy.reference.cache_dir), model=str(toy.other)))


def test_a_reference_of_another_shape_is_refused_before_training(toy: Toy, moved: Moved, tmp_path: Path) -> None:
    tokenizer = train_bpe(["sort 12 34 56 78 90 no"] * 2, 280)
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 48, "max_positions": 64}
    create_model(tmp_path / "narrow", tokenizer, seed=0, **shape)
    with pytest.raises(
        ConfigError, match=r"needs a reference\.model of the shape of model\.path; it differs in 6 tensors"
    ):
        train(changed(moved.config, tmp_path / "run", tmp_path / "cache", model=str(tmp_path / "narrow")))
    assert not (tmp_path / "cache").exists()


def test_only_references_that_a_checkpoint_needs_are_kept(toy: Toy, moved: Moved, tmp_path: Path) -> None:
    values = changed(moved.config, tmp_path / "run", moved.cache).model_dump()
    values["train"] |= {"keep_checkpoints": 1, "eval_every": None}
    train(Config.model_validate(values))
    assert [path.name for path in (tmp_path / "run/references").iterdir()] == ["step-000004"]


# The same run, ended by force: before a reference gets its name, while its rows are scored, and in the middle of the
# steps that follow.


@dataclass(frozen=True)
class Killed:
    dir: Path
    cache: Path
    summary: dict[str, Any]
    references_left: list[str]
    checkpoints_left: list[str]
    shards_kept: dict[str, tuple[int, int]]
    num_moved_shards: int


@pytest.fixture(scope="module")
def killed(toy: Toy, machine: None) -> Killed:
    wanted, file = settings(toy, "swept"), toy.root / "swept.yaml"
    run, cache = toy.root / "swept", toy.root / "swept-cache"
    file.write_text(dump(wanted))

    def begin(number: int, crash_at: str = "") -> tuple[Any, Path]:
        log = toy.root / f"swept-{number}.log"
        with pytest.MonkeyPatch.context() as patch:
            if crash_at:
                patch.setenv("RAYDPO_CRASH_AT", crash_at)
            return driver.start("train", str(file), log=log), log

    # Folders that are committed: checkpoints 1 and 2, then the reference of step 2.
    process, log = begin(1, "folder:before-rename:3")
    assert process.wait(driver.PATIENCE_S) == 137, log.read_text()
    left = sorted(path.name.partition("-")[0] for path in (run / "references").iterdir())

    first = committed_shards(cache)
    process, log = begin(2)
    driver.wait_until(lambda: bool(committed_shards(cache) - first), process, log)
    driver.end(process)
    kept = {path: seen for path, seen in everything_in(cache).items() if path.endswith(".json") and "/shards/" in path}

    process, log = begin(3)
    driver.wait_until(checkpoint(run, 3).is_dir, process, log)
    driver.end(process)
    checkpoints = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    return Killed(run, cache, train(wanted), left, checkpoints, kept, len(kept) - len(first))


def test_the_kills_came_where_they_should(killed: Killed) -> None:
    assert killed.references_left == [".staging"]
    assert 0 < killed.num_moved_shards < 2 * (2 * BATCH + NUM_EVAL) / ROWS_PER_SHARD
    assert 3 <= len(killed.checkpoints_left) < NUM_STEPS
    assert killed.summary["train"]["resumed_from_step"] in (3, 4)
    now = everything_in(killed.cache)
    assert {path: now[path] for path in killed.shards_kept} == killed.shards_kept, "scored twice"


def test_a_killed_run_ends_with_the_same_bits(killed: Killed, moved: Moved) -> None:
    assert weights(killed.dir / "model") == weights(moved.dir / "model")
    for step in (2, 4):
        assert weights(reference(killed.dir, step)) == weights(reference(moved.dir, step))
    assert metrics(killed.dir) == metrics(moved.dir)
    caches = [path.name for path in killed.cache.iterdir()]
    assert len(caches) == 3
    for name in caches:
        assert nats_by_row(killed.cache / name) == nats_by_row(moved.cache / name)


def test_nothing_half_done_is_left(killed: Killed) -> None:
    assert not [path for path in killed.dir.rglob("*") if path.name.startswith((".staging", ".removed", ".model"))]
    assert sorted(path.name for path in (killed.dir / "references").iterdir()) == ["step-000002", "step-000004"]
