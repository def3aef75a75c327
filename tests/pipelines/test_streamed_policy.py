"""A policy larger than what is free: its evaluation and the proof of its export stream it, and say the same of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from raydpo.driver.export_proof import ProofJob, prove, read_probe, reloaded
from raydpo.errors import IntegrityError
from raydpo.pipelines import evaluate
from raydpo.reference.way import Weights
from raydpo.rundir.workspace import find_workspace
from raydpo.schema.events import Observer
from raydpo.schema.rank_events import PROBE_FILE
from tests.pipelines.conftest import Finished
from tests.pipelines.toy import Notes, Toy, config

WAYS: tuple[Weights, Weights] = ("whole", "auto")
STREAMED = "it is streamed, each layer is read from its files once a pass"


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydpo.reference.way.free_bytes", lambda device: 1000)


def evaluated(toy: Toy, run: Path, model: Path, changes: dict[str, Any], observer: Observer) -> dict[str, Any]:
    return evaluate(config(toy, run, {"evaluate.model": str(model), **changes}), observer)["eval"]


def test_metrics_of_a_streamed_policy_are_those_of_a_whole_one_and_its_reading_is_told(
    toy: Toy, finished: Finished, tmp_path: Path, small_machine: None
) -> None:
    model, notes = finished.dir / "model", Notes()
    streamed = evaluated(toy, tmp_path / "a", model, {"train.tokens_per_microbatch": 300}, notes)
    whole = {"train.tokens_per_microbatch": 300, "reference.weights": "whole"}
    assert evaluated(toy, tmp_path / "b", model, whole, Notes()) == {"last": streamed["last"]}
    assert [text for text in notes.info if text.startswith("evaluate: ") and STREAMED in text]
    assert streamed["passes"] == 4, "three of the start, and one"
    assert streamed["weight_bytes"] > 0


def test_the_proof_of_an_export_streams_it_and_finds_another_model(
    toy: Toy, finished: Finished, tmp_path: Path, small_machine: None
) -> None:
    checkpoint, notes = finished.dir / "checkpoints/step-000004", Notes()
    workspace = find_workspace(config(toy, finished.dir), "train")
    request, theirs = read_probe(checkpoint / PROBE_FILE)
    whole, streamed = (reloaded(ProofJob(checkpoint / "model", request, "float32", "cpu", weights)) for weights in WAYS)
    assert (whole.said, whole.weight_bytes) == ("", 0)
    assert len(streamed.nats) == len(theirs) > 4
    assert all(np.array_equal(one, two) for one, two in zip(streamed.nats, whole.nats, strict=True))

    shutil.copytree(checkpoint / "model", tmp_path / "fresh")
    proof = prove(workspace, tmp_path / "fresh", checkpoint, "model", notes)
    assert 0 < proof["weight_bytes"] == streamed.weight_bytes
    assert proof["max_difference_nats"] <= proof["tolerance_nats"]
    said = [text for text in notes.info if text.startswith("model/")]
    assert STREAMED in said[0]
    assert said[1].startswith("model/ was streamed (0.00 GB of weights read) and says what was trained")
    path = tmp_path / "fresh/model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "q_proj" in name)
    save_file({**tensors, name: -tensors[name]}, path, metadata={"format": "pt"})
    with pytest.raises(IntegrityError, match=r"model/ would be another model"):
        prove(workspace, tmp_path / "fresh", checkpoint, "model", notes)
    assert not (tmp_path / "fresh").exists()
