"""Going on, starting over, refusing: what a run directory that is already there means."""

from __future__ import annotations

import json
import math
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from raydpo.artifacts import commit_folder, read_commit
from raydpo.errors import ResourceError, ResumeError
from raydpo.pipelines import train
from raydpo.rundir import made_with
from raydpo.rundir.resume import differences
from raydpo.train import host_adam
from tests.pipelines.conftest import Finished
from tests.pipelines.toy import (
    Notes,
    Toy,
    committed_shards,
    config,
    everything_in,
    flip_byte,
    metrics,
    read_pairs,
    weights,
    write_model,
    write_pairs,
)

NUM_STEPS = 4
LINES = {"train.keep_checkpoints": 3}


@pytest.fixture
def copy(finished: Finished, tmp_path: Path) -> Path:
    """A copy of the finished run, to be damaged."""
    return shutil.copytree(finished.dir, tmp_path / "copy")


def test_summary_has_the_promised_keys(finished: Finished) -> None:
    summary = json.loads((finished.dir / "summary.json").read_text())
    assert summary == json.loads(json.dumps(finished.summary))
    data, reference = summary["data"], summary["reference"]
    assert (data["lines_read"], data["pairs_used"], data["quarantined"]) == (76, 76, {})
    assert (reference["rows"], reference["rows_scored"], reference["forwards"]) == (152, 0, 0)
    assert summary["train"]["steps"] == NUM_STEPS
    assert set(summary["eval"]) == {"first", "last"}
    for metric in ("loss", "rewards/margins", "rewards/accuracies", "rewards/ties", "logps/chosen"):
        assert all(math.isfinite(summary["eval"][when][f"eval/{metric}"]) for when in ("first", "last"))
    assert summary["eval"]["last"]["eval/rewards/margins"] > summary["eval"]["first"]["eval/rewards/margins"]


def test_a_run_starts_at_its_reference(finished: Finished) -> None:
    """The policy's start is `model.path`, which is the reference unless `reference.model` says otherwise."""
    first = finished.summary["eval"]["first"]
    assert first["eval/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert (first["eval/rewards/ties"], first["eval/rewards/accuracies"]) == (1.0, 0.5)
    assert first["eval/rewards/margins"] == pytest.approx(0, abs=1e-5)
    probe = finished.summary["train"]["probe"]
    assert probe["rows"] == 8
    assert probe["max_difference_nats"] <= probe["tolerance_nats"] < 1e-3
    (step,) = [line for line in metrics(finished.dir) if line["step"] == 1]
    assert step["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_the_run_directory_explains_itself(finished: Finished) -> None:
    assert yaml.safe_load((finished.dir / "config.yaml").read_text())["train"]["learning_rate"] == 1e-3
    assert list((finished.dir / "tensorboard").glob("events*"))
    model = {path.name for path in (finished.dir / "model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= model
    assert [line["step"] for line in metrics(finished.dir)] == [0, 1, 2, 2, 3, 4, 4]


@pytest.mark.parametrize("resume", ["auto", "must"])
def test_a_finished_run_is_left_as_it_is(toy: Toy, finished: Finished, resume: str) -> None:
    before = everything_in(finished.dir / "checkpoints")
    summary = train(config(toy, finished.dir, {**LINES, "run.resume": resume}))
    assert (summary["train"]["resumed_from_step"], summary["train"]["steps"]) == (NUM_STEPS, NUM_STEPS)
    assert summary["eval"] == finished.summary["eval"]
    assert summary["train"]["probe"] == finished.summary["train"]["probe"]
    assert everything_in(finished.dir / "checkpoints") == before


def test_must_needs_something_to_go_on_from(toy: Toy, scored: object, tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match=r"run\.resume: must"):
        train(config(toy, tmp_path / "new", {"run.resume": "must"}))
    assert not (tmp_path / "new/checkpoints").exists()


def test_never_sets_the_old_outputs_aside(toy: Toy, finished: Finished, copy: Path) -> None:
    notes = Notes()
    summary = train(config(toy, copy, {"run.resume": "never", "train.learning_rate": 2e-3}), notes)
    assert (summary["train"]["resumed_from_step"], summary["train"]["steps"]) == (0, NUM_STEPS)
    (aside,) = copy.glob("replaced-*")
    assert [str(aside) in text for text in notes.info].count(True) == 1
    assert weights(aside / "model") == weights(finished.dir / "model") != weights(copy / "model")
    assert metrics(aside) == metrics(finished.dir) != metrics(copy)
    assert (aside / "checkpoints/step-000004/COMMIT.json").is_file()
    assert yaml.safe_load((copy / "config.yaml").read_text())["train"]["learning_rate"] == 2e-3


def test_other_settings_are_refused_one_by_one(toy: Toy, finished: Finished, copy: Path) -> None:
    written = (copy / "config.yaml").read_bytes()
    changes = {"train.learning_rate": 5e-4, "objective.beta": 0.2, "run.seed": 1, "train.log_every": 2}
    with pytest.raises(ResumeError) as caught:
        train(config(toy, copy, changes))
    problems = "\n".join(caught.value.problems)
    assert "train.learning_rate: 0.001 then, 0.0005 now." in problems
    assert "run.seed: 0 then, 1 now." in problems
    assert "objective.beta" in problems
    assert "log_every" not in problems
    assert "run.dir" in problems
    assert (copy / "config.yaml").read_bytes() == written, "config.yaml is that of the run, not of the refused one"


def test_another_dtype_is_refused_however_it_came_to_be(toy: Toy, machine: None, tmp_path: Path) -> None:
    """auto is compared as what it became. Without a reference its workers are not started, and their GPUs say nothing."""
    changes = {"model.dtype": "auto", "train.max_steps": 1, "train.eval_every": None}
    simpo = {"name": "simpo"}
    train(config(toy, tmp_path, changes, simpo))
    summary = train(config(toy, tmp_path, {**changes, "reference.gpus_per_worker": 1}, simpo))
    assert summary["train"]["resumed_from_step"] == 1
    with pytest.raises(
        ResumeError, match=r"model\.dtype: 'float32' then, 'bfloat16' now\. .* model\.dtype: float32 goes on"
    ):
        train(config(toy, tmp_path, {**changes, "model.dtype": "bfloat16"}, simpo))


def cut(run: Path, step: int) -> Path:
    """Remove what a run committed after `step`. Returns the checkpoint of `step`."""
    for path in (run / "checkpoints").glob("step-*"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    return run / f"checkpoints/step-{step:06d}"


@pytest.mark.slow
def test_a_run_goes_on_with_other_ranks_and_another_stage(toy: Toy, finished: Finished, copy: Path) -> None:
    cut(copy, 2)
    notes = Notes()
    summary = train(config(toy, copy, {**LINES, "train.num_workers": 2, "train.zero_stage": 3}), notes)
    assert (summary["train"]["resumed_from_step"], summary["train"]["steps"]) == (2, NUM_STEPS)
    before, after = (
        [line["loss"] for line in metrics(run) if "loss" in line and line["step"] > 2] for run in (finished.dir, copy)
    )
    assert len(before) == 2
    assert after == pytest.approx(before, rel=1e-5)
    assert after[0] == pytest.approx(before[0], rel=1e-6)
    moved = ["train.num_workers: 1 up to step 2, 2 after it", "train.zero_stage: 2 up to step 2, 3 after it"]
    assert summary["train"]["moved"] == moved
    assert [moved[0] in text for text in notes.info].count(True) == 1
    again = train(config(toy, copy, LINES))
    assert again["train"]["moved"] == moved, "nothing was trained on one rank since"


def test_other_libraries_are_a_warning_that_the_summary_keeps(
    toy: Toy, finished: Finished, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(copy, 3)
    monkeypatch.setattr(made_with, "version", lambda name: "9.9" if name == "torch" else version(name))
    notes = Notes()
    summary = train(config(toy, copy, LINES), notes)
    (said,) = summary["train"]["moved"]
    assert said == f"torch: {version('torch')} up to step 3, 9.9 after it"
    assert [said in text for text in notes.warning] == [True]
    assert finished.summary["train"]["moved"] == []


def test_another_adam_of_an_offloaded_optimizer_is_said(toy: Toy, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where DeepSpeed's does not build on the machine that goes on."""
    offloaded = {**LINES, "train.offload_optimizer": True}
    cut(copy, 2)
    first = train(config(toy, copy, offloaded))
    cut(copy, 3)
    monkeypatch.setattr(host_adam, "TORCH", "another")
    notes = Notes()
    summary = train(config(toy, copy, offloaded), notes)
    said = "optimizer: torch.optim.AdamW up to step 3, another after it"
    assert said in summary["train"]["moved"]
    assert said not in first["train"]["moved"]
    assert [said in text for text in notes.warning] == [True]
    assert [text for text in notes.info if "torch's AdamW updates the offloaded optimizer" in text]


class Evil:
    """Pickled, a file that is made when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("keeps_own", [False, True], ids=["alone", "beside ours"])
def test_pickles_in_a_committed_checkpoint_are_refused_unread(
    toy: Toy, copy: Path, tmp_path: Path, keeps_own: bool
) -> None:
    """So earlier versions wrote their state, and so whoever may write to the folder could have code run."""
    folder, marker = cut(copy, 3), tmp_path / "ran"
    staging = folder.rename(tmp_path / "staging")
    if not keeps_own:
        shutil.rmtree(staging / "engine")
    name = "engine/state/zero_pp_rank_0_mp_rank_00_optim_states.pt"
    (staging / name).parent.mkdir(parents=True)
    torch.save(Evil(marker), staging / name)
    commit_folder(staging, folder, read_commit(staging)["meta"])
    with pytest.raises(ResumeError, match=rf"step-000003 holds 1 files .*{name}.*run\.resume: never"):
        train(config(toy, copy, LINES))
    assert not marker.exists()
    torch.load(folder / name, weights_only=False)
    assert marker.exists(), "it would have run"


def test_directories_that_were_written_before_the_dtype_was_still_go_on() -> None:
    assert differences({"model.dtype": "auto"}, {"model.dtype": "bfloat16"}) == []
    assert differences({}, {"model.dtype": "bfloat16"}) == []
    assert len(differences({"model.dtype": "float32"}, {"model.dtype": "bfloat16"})) == 1


def test_other_data_is_refused_before_anything_is_scored(toy: Toy, finished: Finished, copy: Path) -> None:
    pairs = read_pairs(toy.train)
    pairs[0]["chosen"] = " something else"
    data = write_pairs(copy / "changed.jsonl", pairs)
    shards = committed_shards(toy.cache)
    with pytest.raises(ResumeError, match="training data: "):
        train(config(toy, copy, {"data.train": [str(data)]}))
    assert committed_shards(toy.cache) == shards


def test_a_moved_model_is_the_same_model_and_changed_files_are_not(
    finished: Finished, toy: Toy, tmp_path: Path
) -> None:
    run, model = shutil.copytree(finished.dir, tmp_path / "run"), shutil.copytree(toy.model, tmp_path / "model")
    shards = committed_shards(toy.cache)
    moved = train(config(toy, run, {"model.path": str(model)}))
    assert moved["train"]["steps"] == finished.summary["train"]["steps"]
    assert moved["reference"]["forwards"] == 0
    shutil.rmtree(model)
    write_model(model, seed=3)
    with pytest.raises(ResumeError, match="model weights: "):
        train(config(toy, run, {"model.path": str(model)}))
    assert committed_shards(toy.cache) == shards


def test_damaged_checkpoints_are_passed_over(toy: Toy, finished: Finished, copy: Path) -> None:
    flip_byte(copy / "checkpoints/step-000004/model/model.safetensors")
    (copy / "checkpoints/step-000002/COMMIT.json").write_text("{")
    shutil.rmtree(copy / "model")
    notes = Notes()
    summary = train(config(toy, copy, LINES), notes)
    (said,) = notes.warning
    assert "step-000004" in said
    assert "model.safetensors differs" in said
    assert summary["train"]["resumed_from_step"] == 3
    assert weights(copy / "model") == weights(finished.dir / "model")
    assert metrics(copy) == metrics(finished.dir)
    assert summary["eval"] == finished.summary["eval"]
    assert len(list((copy / "checkpoints/damaged").glob("step-000004-*"))) == 1


def test_when_all_checkpoints_are_damaged_must_says_so(toy: Toy, finished: Finished, copy: Path) -> None:
    for path in (copy / "checkpoints").glob("step-*/COMMIT.json"):
        flip_byte(path)
    with pytest.raises(ResumeError, match=r"These are damaged: step-000004") as caught:
        train(config(toy, copy, {**LINES, "run.resume": "must"}))
    assert "step-000002" in str(caught.value)


def test_more_ranks_than_fit_are_refused_before_anything_is_scored(toy: Toy, machine: None, tmp_path: Path) -> None:
    changes = {"train.num_workers": 64, "reference.cache_dir": str(tmp_path / "cache")}
    with pytest.raises(ResourceError, match=r"train: 64 workers .* Missing: 60 CPUs"):
        train(config(toy, tmp_path / "run", changes))
    assert not committed_shards(tmp_path / "cache")
