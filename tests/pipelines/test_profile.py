"""`profile=true` on a run: it may come and go between attempts, and what it makes is published by the driver."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from raydpo.config import Config
from raydpo.pipelines import train
from raydpo.rundir.resume import trajectory
from tests.pipelines.conftest import Finished
from tests.pipelines.toy import Notes, Toy, config, metrics, weights

pytestmark = pytest.mark.slow


def test_a_run_goes_on_with_a_profile_and_without(toy: Toy, finished: Finished, tmp_path: Path) -> None:
    run = shutil.copytree(finished.dir, tmp_path / "run")
    for step in (3, 4):
        shutil.rmtree(run / f"checkpoints/step-{step:06d}")
    plain = config(toy, run, {"train.keep_checkpoints": 3})
    with_profile = plain.model_copy(update={"profile": True})
    notes = Notes()
    summary = train(with_profile, notes)
    assert summary["train"]["resumed_from_step"] == 2
    assert weights(run / "model") == weights(finished.dir / "model")
    assert metrics(run) == metrics(finished.dir)
    assert Config.load(run / "config.yaml").profile

    (said,) = [text for text in notes.info if text.startswith("profile of step 4: ")]
    assert said.endswith(f"table.txt and the trace are in {run / 'profile'}")
    assert "linear layers" in said
    table = (run / "profile/table.txt").read_text()
    assert "Where the time of step 4 went" in table
    trace = json.loads((run / "profile/trace.json").read_text())
    assert [event["name"] for event in trace["traceEvents"]].count("raydpo::step") == 1
    assert not list((run / "checkpoints").glob(".staging-*"))

    notes = Notes()
    assert train(with_profile, notes)["train"]["steps"] == 4
    assert [text for text in notes.warning if "no step was left to record" in text]
    assert (run / "profile/table.txt").read_text() == table
    assert train(plain)["train"]["steps"] == 4

    train(config(toy, run, {"run.resume": "never", "train.max_steps": 1}))
    (aside,) = run.glob("replaced-*")
    assert (aside / "profile/table.txt").read_text() == table
    assert not (run / "profile").exists()


def test_no_profile_unless_asked_for(finished: Finished) -> None:
    assert not (finished.dir / "profile").exists()
    assert not [text for text in finished.notes.info if "profile" in text]


def test_a_profile_does_not_name_a_run(toy: Toy, tmp_path: Path) -> None:
    plain = config(toy, tmp_path)
    found = trajectory(plain, {"training data": "x"})
    assert trajectory(plain.model_copy(update={"profile": True}), {"training data": "x"}) == found
    assert {"train.learning_rate", "objective.beta", "training data"} <= set(found)
