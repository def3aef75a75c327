"""`train.save: weights`: checkpoints without what training goes on from, and what that means is said."""

import pytest

from raydpo.errors import ConfigError, ResumeError, Stopped
from raydpo.pipelines import train
from tests.pipelines.test_stops import Signal, at_step
from tests.pipelines.toy import Notes, Toy, config, everything_in, weights

ALONE = {"train.save": "weights"}


def test_an_interrupted_run_starts_over_and_says_so(toy: Toy, tmp_path):
    notes = Signal(at_step(2))
    with pytest.raises(Stopped, match=r"weights alone .* starts over"):
        train(config(toy, tmp_path / "run", ALONE), notes)
    assert [text for text in notes.warning if "nothing goes on from these checkpoints" in text]
    assert not [name for name in everything_in(tmp_path / "run/checkpoints") if "engine" in name]
    with pytest.raises(ResumeError, match="nothing goes on from them"):
        train(config(toy, tmp_path / "run", ALONE | {"run.resume": "must"}))
    summary = train(config(toy, tmp_path / "run", ALONE), Notes())
    assert summary["train"]["resumed_from_step"] == 0
    train(config(toy, tmp_path / "whole"))
    assert weights(tmp_path / "run/model") == weights(tmp_path / "whole/model")


def test_what_goes_on_from_checkpoints_needs_all_of_them(toy: Toy, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.save: weights with reference\.sync_every"):
        train(config(toy, tmp_path / "run", ALONE | {"reference.sync_every": 2}))
