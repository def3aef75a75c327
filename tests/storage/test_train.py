"""A training whose run directory is an address: killed, and gone on with on a machine that has nothing of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from raydpo.artifacts.mirror_path import ROOT_VARIABLE, copies_root, local_path
from raydpo.artifacts.object_store import ObjectStore
from raydpo.artifacts.placeholder import store_at
from raydpo.errors import ResumeError
from raydpo.pipelines import check, evaluate, precompute, run_rounds, train
from raydpo.schema.events import Advanced, Event
from tests.pipelines.rounds.toy_rounds import pairs, rounds_config
from tests.pipelines.toy import NUM_ROWS, NUM_TRAIN, Notes, Toy, config, make_toy, metrics, weights
from tests.storage.runs import log_of, named, remote_config

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def undisturbed(toy: Toy) -> Path:
    """A run on this machine's disk that nobody disturbed."""
    train(config(toy, toy.root / "undisturbed"))
    return toy.root / "undisturbed"


def killed_after(what: str, verb: str, toy: Toy, url: str) -> None:
    """A process that works on `url` and is killed once `what` is committed there."""
    command = [sys.executable, "-m", "tests.storage.run_once", verb, str(toy.root), url]
    driver = subprocess.Popen(command, cwd=ROOT)
    while what not in named(log_of(url)):
        assert driver.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
    driver.kill()
    assert driver.wait() == -9


def test_a_killed_training_goes_on_where_nothing_of_it_is(
    toy: Toy, undisturbed: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{bucket}/team/run"
    killed_after("checkpoints/step-000002", "train", toy, url)
    shutil.rmtree(copies_root())
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "one that looks"))
    entries, notes = log_of(url), Notes()
    looked = evaluate(remote_config(toy, url), notes)
    assert log_of(url) == entries, "who evaluates takes nothing from a training that may go on"
    assert any("so what was committed is read and nothing changed" in text for text in notes.warning)
    assert re.search(r"/checkpoints/step-00000[234]$", looked["model"])
    assert (looked["data"]["reused"], looked["reference"]["rows_scored"]) == (True, 0)
    assert json.loads(ObjectStore(url).get("evaluate.json") or b"")["eval"] == looked["eval"]
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
    url, at_step = f"{bucket}/run", list[tuple[Event, Counter[str]]]()
    counts = store_at(url).counts
    changes = {"train.save_every": 3, "train.eval_every": None}
    first = train(remote_config(toy, url, changes), lambda event: at_step.append((event, counts.copy())))
    before = [
        now for event, now in at_step if isinstance(event, Advanced) and event.stage == "train" and event.done < 3
    ]
    assert len(before) > 1
    assert before[0] == before[-1], "a step asks the store for nothing"
    assert first["store"]["create"] == counts["create"] - 3, (
        "the summary itself, the report and the end come after it was made"
    )
    held = {key for key, _, _ in ObjectStore(url).listed()}
    assert not any("step-000001" in key for key in held), "checkpoints that are not kept are removed from the store"
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "another machine"))
    again = train(remote_config(toy, url, changes))
    assert again["train"]["steps"] == first["train"]["steps"]
    assert again["train"]["resumed_from_step"] == first["train"]["steps"]
    assert weights(local_path(url) / "model") == ObjectStore(url).get("model/model.safetensors")
    with pytest.raises(ResumeError, match="other settings"):
        train(remote_config(toy, url, {**changes, "train.learning_rate": 1e-2}))


def test_killed_rounds_go_on_where_nothing_of_them_is(
    toy: Toy, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, undisturbed = f"{bucket}/rounds", toy.root / "undisturbed-rounds"
    expected = run_rounds(rounds_config(toy, undisturbed))
    killed_after("rounds/001/generations", "rounds", toy, url)
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "another machine"))

    summary = run_rounds(rounds_config(toy, Path("unused"), {"run.dir": url}))

    assert summary["run_dir"] == url
    assert [found["metrics"] for found in summary["rounds"]] == [found["metrics"] for found in expected["rounds"]]
    for index in range(2):
        assert pairs(local_path(url), index) == pairs(undisturbed, index)
    last = "rounds/001/train/model"
    assert weights(local_path(url) / last) == weights(undisturbed / last)
    assert named(log_of(url)).count("rounds/000/summary") == 1, "what was committed is not made again"


def test_everything_at_addresses_and_every_verb_on_a_machine_of_its_own(
    toy: Toy, undisturbed: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore(f"{bucket}/in")
    for path in (toy.train, toy.eval, *toy.model.iterdir()):
        store.put(path.relative_to(toy.root).as_posix(), path)
    changes = {
        "reference.cache_dir": f"{bucket}/cache",
        "data.train": [f"{bucket}/in/train.jsonl"],
        "data.eval": [f"{bucket}/in/eval.jsonl"],
        "model.path": f"{bucket}/in/model",
    }
    config = remote_config(toy, f"{bucket}/run", changes)
    summaries = {}
    for verb in (check, precompute, train, evaluate):
        monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / verb.__name__))
        notes = Notes()
        summaries[verb.__name__] = verb(config, notes)
        assert verb is not check or f"run.dir: {bucket}/run is in an object store" in "\n".join(notes.info)
    assert summaries["check"]["data"]["train_pairs"] == summaries["train"]["data"]["train_pairs"] == NUM_TRAIN
    assert summaries["precompute"]["reference"]["rows_scored"] == NUM_ROWS
    assert summaries["train"]["reference"]["rows_scored"] == summaries["evaluate"]["reference"]["rows_scored"] == 0
    assert summaries["precompute"]["reference"]["cache"].startswith(f"{bucket}/cache/")
    assert ObjectStore(f"{bucket}/run").get("model/model.safetensors") == weights(undisturbed / "model")
    assert summaries["evaluate"]["eval"]["last"] == summaries["train"]["eval"]["last"]
