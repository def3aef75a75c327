"""A training whose run directory is an address: killed, and gone on with on a machine that has nothing of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raydpo.artifacts.mirror_path import ROOT_VARIABLE, copies_root, local_path
from raydpo.artifacts.object_store import ObjectStore
from raydpo.errors import ResumeError
from raydpo.pipelines import train
from tests.pipelines.toy import Toy, config, make_toy, metrics, weights
from tests.storage.runs import log_of, named, remote_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def undisturbed(toy: Toy) -> Path:
    """A run on this machine's disk that nobody disturbed."""
    train(config(toy, toy.root / "undisturbed"))
    return toy.root / "undisturbed"


def test_a_killed_training_goes_on_where_nothing_of_it_is(
    toy: Toy, undisturbed: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{bucket}/team/run"
    driver = subprocess.Popen([sys.executable, "-m", "tests.storage.train_once", str(toy.root), url], cwd=ROOT)
    while "checkpoints/step-000002" not in named(log_of(url)):
        assert driver.poll() is None, "the training ended before it could be killed"
        time.sleep(0.05)
    driver.kill()
    assert driver.wait() == -9
    shutil.rmtree(copies_root())
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "another machine"))

    summary = train(remote_config(toy, url))

    assert summary["run_dir"] == url
    assert summary["train"]["resumed_from_step"] >= 2
    assert weights(local_path(url) / "model") == weights(undisturbed / "model")
    assert metrics(local_path(url)) == metrics(undisturbed)
    store = ObjectStore(url)
    assert store.get("model/model.safetensors") == weights(undisturbed / "model")
    assert json.loads(store.get("summary.json") or b"") == json.loads((local_path(url) / "summary.json").read_text())
    assert (store.get("metrics.jsonl") or b"").decode() == (local_path(url) / "metrics.jsonl").read_text()
    files = json.loads(store.get("model/FILES.json") or b"")["files"]
    assert sorted(files) == sorted(path.name for path in (undisturbed / "model").iterdir())
    attempts = [entry["attempt"] for entry in log_of(url)]
    assert attempts == sorted(attempts)
    assert attempts[-1] == 2


def test_a_finished_run_is_known_as_finished_and_nothing_large_is_fetched(
    toy: Toy, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{bucket}/run"
    first = train(remote_config(toy, url))
    held = {key for key, _, _ in ObjectStore(url).listed()}
    assert not any("step-000001" in key for key in held), "checkpoints that are not kept are removed from the store"
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "another machine"))
    again = train(remote_config(toy, url))
    assert again["train"]["steps"] == first["train"]["steps"]
    assert again["train"]["resumed_from_step"] == first["train"]["steps"]
    assert weights(local_path(url) / "model") == ObjectStore(url).get("model/model.safetensors")
    with pytest.raises(ResumeError, match="other settings"):
        train(remote_config(toy, url, {"train.learning_rate": 1e-2}))
