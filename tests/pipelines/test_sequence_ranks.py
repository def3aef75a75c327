"""`train.sequence_parallel_size` from the data to `model/`: the numbers of one rank, and runs that go on with another size."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from raydpo.pipelines import train
from tests.pipelines.conftest import Finished
from tests.pipelines.toy import Notes, Toy, config, metrics

LINES = {"train.keep_checkpoints": 3}
TWO = {"train.num_workers": 2}
SHARED = {**TWO, "train.sequence_parallel_size": 2, "train.tokens_per_microbatch": 300}


def run(toy: Toy, folder: Path, changes: Mapping[str, Any], notes: Notes | None = None) -> dict[str, Any]:
    return train(config(toy, folder, {**LINES, **changes}), *filter(None, [notes]))


@pytest.fixture(scope="module")
def shared(toy: Toy, scored: object, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The run of `finished` on two ranks that share every sequence, in several micro-batches a step."""
    notes, folder = Notes(), tmp_path_factory.mktemp("shared") / "run"
    return Finished(folder, run(toy, folder, SHARED, notes), notes)


def assert_same_numbers(one: Path, other: Path) -> None:
    """Every line of metrics, loss and held-out sums, and the weights."""
    lines, others = metrics(one), metrics(other)
    assert [line["step"] for line in lines] == [line["step"] for line in others]
    for line, same in zip(lines, others, strict=True):
        assert same == pytest.approx(line, rel=1e-5, abs=1e-5)
    weights, same_weights = (load_file(run / "model/model.safetensors") for run in (one, other))
    assert weights.keys() == same_weights.keys()
    for name, value in weights.items():
        np.testing.assert_allclose(same_weights[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_numbers_are_those_of_one_rank(finished: Finished, shared: Finished) -> None:
    assert_same_numbers(finished.dir, shared.dir)
    ours, theirs = shared.summary, finished.summary
    assert (ours["train"]["steps"], ours["train"]["skipped_steps"]) == (4, 0)
    assert (ours["data"], ours["reference"]["rows"]) == (theirs["data"], theirs["reference"]["rows"])
    assert ours["train"]["probe"]["rows"] == theirs["train"]["probe"]["rows"]
    for when in ("first", "last"):
        assert ours["eval"][when] == pytest.approx(theirs["eval"][when], rel=1e-5, abs=1e-5)
    assert [text for text in shared.notes.info if "on each of the 2 ranks that share it" in text]


@pytest.mark.parametrize(
    ("begins", "changes"),
    [
        pytest.param("shared", {}, id="from two that share to one"),
        pytest.param("finished", SHARED, id="from one to two that share", marks=pytest.mark.slow),
        pytest.param("shared", TWO, id="from two that share to two that do not", marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_with_another_size(
    request: pytest.FixtureRequest, toy: Toy, finished: Finished, tmp_path: Path, begins: str, changes: dict[str, Any]
) -> None:
    begun = request.getfixturevalue(begins)
    copy, notes = shutil.copytree(begun.dir, tmp_path / "copy"), Notes()
    for step in (3, 4):
        shutil.rmtree(copy / f"checkpoints/step-{step:06d}")
    assert len(list((copy / "checkpoints/step-000002/engine").iterdir())) == (2 if begins == "shared" else 1)
    summary = run(toy, copy, changes, notes)
    assert (summary["train"]["resumed_from_step"], summary["train"]["steps"]) == (2, 4)
    assert_same_numbers(finished.dir, copy)
    then, now = (2, 1) if begins == "shared" else (1, 2)
    said = f"train.sequence_parallel_size: {then} up to step 2, {now} after it"
    assert said in summary["train"]["moved"]
    assert [said in text for text in notes.info].count(True) == 1
