"""`evaluate` gives the numbers that training gave, for a model folder, a checkpoint and the start."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from raydpo.driver.data_stage import data_stage
from raydpo.errors import ConfigError
from raydpo.models.resolve import resolve_model
from raydpo.pipelines import evaluate
from raydpo.rundir.workspace import find_workspace
from tests.pipelines.conftest import Finished
from tests.pipelines.toy import Notes, Toy, config, metrics


def test_the_runs_own_model(toy: Toy, finished: Finished) -> None:
    written = (finished.dir / "config.yaml").read_bytes()
    summary = evaluate(config(toy, finished.dir, {"train.num_workers": 2}))
    assert summary["eval"]["last"] == pytest.approx(finished.summary["eval"]["last"], abs=1e-5)
    assert summary["reference"]["forwards"] == 0
    assert json.loads((finished.dir / "evaluate.json").read_text())["eval"] == summary["eval"]
    assert json.loads((finished.dir / "summary.json").read_text())["train"]["steps"] == 4, "left as it was"
    assert (finished.dir / "config.yaml").read_bytes() == written, "the config of the training stays"


def test_a_checkpoint_folder(toy: Toy, finished: Finished, tmp_path: Path) -> None:
    """In a run directory of its own, whose evaluation rows come from the shared cache."""
    checkpoint = finished.dir / "checkpoints/step-000002"
    summary = evaluate(config(toy, tmp_path / "run", {"evaluate.model": str(checkpoint)}))
    (line,) = [line for line in metrics(finished.dir) if line["step"] == 2 and "eval/loss" in line]
    del line["step"]
    assert summary["eval"]["last"] == pytest.approx(line, abs=1e-5)
    assert summary["eval"]["last"] != pytest.approx(finished.summary["eval"]["last"], abs=1e-5)
    assert (summary["model"], summary["reference"]["forwards"]) == (str(checkpoint), 0)


def test_what_cannot_be_evaluated(toy: Toy, scored: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.model: .*model does not exist"):
        evaluate(config(toy, tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"data\.eval is empty"):
        evaluate(config(toy, tmp_path / "run", {"data.eval": []}))


def test_what_is_known_of_the_forward_of_its_model_is_said_before_anything_starts(toy: Toy, tmp_path: Path) -> None:
    """Of the evaluated model, not of the run's, and nothing about a training that there is none of."""
    shutil.copytree(toy.model, tmp_path / "model")
    path = tmp_path / "model/config.json"
    described = {**json.loads(path.read_text()), "model_type": "mixtral", "num_local_experts": 4, "logit_scale": 0.25}
    path.write_text(json.dumps(described))
    wanted, notes = config(toy, tmp_path / "run", {"evaluate.model": str(tmp_path / "model")}), Notes()
    evaluated = resolve_model("evaluate.model", str(tmp_path / "model"))
    data_stage(find_workspace(wanted, "evaluate"), notes, write=False, evaluated=evaluated)
    (said,) = [text for text in notes.info if "mixtral" in text]
    assert said.startswith("logits of mixtral are changed after the head by logit_scale: 0.25")
