"""The balancing loss of experts in the verbs: a check says what becomes of it, and a run keeps its coefficient."""

import json
import shutil

import pytest

from raydpo.errors import ResumeError
from raydpo.models.balancing import KEY as BALANCING
from raydpo.pipelines import check
from raydpo.rundir.resume import Checkpoint, plan_training
from tests.pipelines.toy import Notes, Toy, config


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("auto", "is on with its own coefficient 0.02 (router_aux_loss_coef of its config.json)"),
        ("off", "is off (train.router_aux_loss: off)"),
        (0.5, "is on with coefficient 0.5 (train.router_aux_loss); the model's own is 0.02"),
    ],
)
def test_a_check_says_what_becomes_of_the_balancing_loss(toy: Toy, tmp_path, asked, words):
    shutil.copytree(toy.model, tmp_path / "model")
    path = tmp_path / "model/config.json"
    experts = {"model_type": "mixtral", "num_local_experts": 4, "router_aux_loss_coef": 0.02}
    path.write_text(json.dumps({**json.loads(path.read_text()), **experts}))
    changes, notes = {"model.path": str(tmp_path / "model"), "train.router_aux_loss": asked}, Notes()
    check(config(toy, tmp_path / "run", changes), notes)
    (said,) = [text for text in notes.info if "balancing loss" in text]
    assert said.startswith(f"the balancing loss of the experts of mixtral {words}")


@pytest.mark.parametrize(
    ("old", "now", "goes_on"),
    [
        ({}, 0.02, "off"),
        ({BALANCING: 0.0}, 0.02, "off"),
        ({BALANCING: 0.02}, 0.0, "0.02"),
        ({BALANCING: 0.02}, 0.001, "0.02"),
        ({}, 0.0, None),
        ({BALANCING: 0.02}, 0.02, None),
    ],
)
def test_a_run_with_another_balancing_coefficient_is_not_gone_on_with(toy: Toy, tmp_path, old, now, goes_on):
    """A run from before there was such a loss has no coefficient, and went without one."""
    newest = Checkpoint(tmp_path, {"step": 2, "reason": "", "trajectory": {"train.learning_rate": 1.0, **old}})
    wanted = {"train.learning_rate": 1.0, BALANCING: now}
    if goes_on is None:
        assert plan_training(config(toy, tmp_path / "run"), newest, wanted, []).action == "resume"
        return
    with pytest.raises(ResumeError, match=f"{BALANCING}: .* now. {BALANCING}: {goes_on} goes on"):
        plan_training(config(toy, tmp_path / "run"), newest, wanted, [])
