"""The same runs on Ray and without it: the same files, numbers and errors. What other tests of this folder say of the local
runtime then holds on Ray.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.rounds_apart import TensorBytes
from raydpo.data import row_ranges
from raydpo.data.parts import PREFIX
from raydpo.driver.data_stage import data_stage
from raydpo.errors import RaydpoError
from raydpo.pipelines import evaluate, iterate, train
from raydpo.rundir.workspace import open_workspace
from raydpo.schema.events import Advanced, Event, Note, ignore
from tests.pipelines import driver
from tests.pipelines.rounds.toy_rounds import generations, pairs, rounds_config
from tests.pipelines.toy import NUM_EVAL, NUM_TRAIN, Toy, config, metrics, nats_by_row, weights

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


@dataclass
class Both:
    """One training on each runtime, in `folder`/ray and `folder`/local.

    changes: to the toy's config.
    summaries: by runtime.
    local_processes: names of the processes that the local one started.
    """

    folder: Path
    changes: Mapping[str, Any]
    summaries: dict[str, dict[str, Any]]
    local_processes: set[str]

    def settings(self, toy: Toy, kind: str) -> Any:
        cache = str(self.folder / f"cache-{kind}")
        return config(toy, self.folder / kind, {**self.changes, "run.runtime": kind, "reference.cache_dir": cache})

    def run(self, toy: Toy) -> None:
        self.summaries["ray"] = train(self.settings(toy, "ray"))
        before = {child.pid for child in psutil.Process().children(recursive=True)}  # Ray's own

        def look(_: Event) -> None:
            now = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
            self.local_processes.update(child.name() for child in now)

        self.summaries["local"] = train(self.settings(toy, "local"), look)

    def assert_same(self, toy: Toy) -> None:
        ray, local = self.folder / "ray", self.folder / "local"
        assert names_in(ray) == names_in(local)
        assert weights(ray / "model") == weights(local / "model") != weights(toy.model)
        assert metrics(ray) == metrics(local)
        caches = [sorted(path.name for path in (self.folder / f"cache-{kind}").iterdir()) for kind in ("ray", "local")]
        assert caches[0] == caches[1]
        for name in caches[0]:
            assert nats_by_row(self.folder / "cache-ray" / name) == nats_by_row(self.folder / "cache-local" / name)
        numbers = [
            {part: {k: v for k, v in self.summaries[kind][part].items() if k != "model"} for part in ("train", "eval")}
            for kind in ("ray", "local")
        ]
        assert numbers[0] == numbers[1]


def names_in(folder: Path) -> set[str]:
    """Every file of a run directory, but those whose name has a clock or a random part."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith("tensorboard/")}


@pytest.fixture(scope="module")
def both(toy: Toy, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Both:
    """Two ranks of ZeRO 2 and two reference workers."""
    changes = {"train.num_workers": 2, "reference.num_workers": 2, "train.zero_stage": 2}
    found = Both(tmp_path_factory.mktemp("both"), changes, {}, set())
    found.run(toy)
    return found


def test_training_leaves_the_same_files_with_the_same_numbers(toy: Toy, both: Both) -> None:
    both.assert_same(toy)


def test_nothing_of_ray_is_started_for_a_local_run(both: Both) -> None:
    assert both.local_processes, "two ranks are processes"
    assert not [name for name in both.local_processes if name.startswith("ray::") or name in ("raylet", "gcs_server")]


def test_a_moving_reference_is_the_same(toy: Toy, tmp_path: Path) -> None:
    moving = Both(tmp_path, {"reference.sync_every": 2, "train.verify_export": False}, {}, set())
    moving.run(toy)
    moving.assert_same(toy)


def test_evaluation_and_resume_do_not_care_which_runtime_went_before(toy: Toy, both: Both) -> None:
    settings = both.settings(toy, "ray")
    other = settings.model_copy(update={"run": settings.run.model_copy(update={"runtime": "local"})})
    again = train(other)
    assert (again["train"]["resumed_from_step"], again["eval"]) == (4, both.summaries["ray"]["eval"])
    measured = [evaluate(each)["eval"] for each in (settings, other)]
    assert measured[0] == measured[1]
    assert measured[0]["last"] == pytest.approx(again["eval"]["last"], abs=1e-6)


@dataclass
class Rounds:
    """Two rounds on each runtime, in `folder`/ray and `folder`/local, with two generators; on Ray the oldest one is killed.

    metrics: of each round, by runtime.
    killed: the process.
    stored: what went into Ray's object store for many actors, by the bytes of its tensors.
    said: what the run on Ray said.
    """

    folder: Path
    metrics: dict[str, list[dict[str, float]]]
    killed: list[int]
    stored: TensorBytes = field(default_factory=TensorBytes)
    said: list[str] = field(default_factory=list)

    def run(self, toy: Toy) -> None:
        from raydpo.runtime.ray_backend import RayActors

        for kind, observer in (("local", ignore), ("ray", self._kill)):
            changes = {"rounds.placement": "split", "run.runtime": kind, "generate.num_workers": 2}
            changes |= {"train.verify_export": False}  # an export is loaded again on Ray in `both`
            settings = rounds_config(toy, self.folder / kind, changes)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(RayActors, "share", self._share_on(RayActors.share))
                self.metrics[kind] = [dict(found.metrics) for found in iterate(settings, observer=observer)]

    def _share_on(self, share: Any) -> Any:
        def counted(actors: Any, value: Any) -> Any:
            self.stored.dump(value)
            return share(actors, value)

        return counted

    def _kill(self, event: Event) -> None:
        if isinstance(event, Note):
            self.said.append(event.text)
        if isinstance(event, Advanced) and event.stage == "generate" and not self.killed:
            self.killed.append(driver.by_age("PoolActor")[0])
            os.kill(self.killed[0], signal.SIGKILL)


@pytest.fixture(scope="module")
def rounds(toy: Toy, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Rounds:
    """With split placement, where roles work side by side."""
    found = Rounds(tmp_path_factory.mktemp("rounds"), {}, [])
    found.run(toy)
    return found


def test_rounds_make_the_same_pairs_and_policies(rounds: Rounds) -> None:
    assert len(rounds.metrics["ray"]) == 2
    assert rounds.metrics["ray"] == rounds.metrics["local"]
    for index in range(2):
        assert pairs(rounds.folder / "ray", index) == pairs(rounds.folder / "local", index) != []
        model = f"rounds/{index:03d}/train/model"
        assert weights(rounds.folder / "ray" / model) == weights(rounds.folder / "local" / model)


def test_a_generator_that_dies_on_ray_costs_nothing(rounds: Rounds) -> None:
    """As in rounds/test_deaths.py without Ray. It died over the samples of the first round."""
    assert len(rounds.killed) == 1
    answers = [generations(rounds.folder / kind, 0) for kind in ("ray", "local")]
    assert answers[0] == answers[1] != []


def test_roles_beside_the_trainers_start_once_on_both(rounds: Rounds) -> None:
    for kind, num_generators in (("ray", 3), ("local", 2)):  # one of them was killed
        summary = json.loads((rounds.folder / kind / "summary.json").read_text())
        assert summary["standing"]["reference"] is True
        assert summary["starts"] == {
            "generate": num_generators,
            "judge": 1,
            "reference": 1,
            "train": 1,
            "initial policy": 1,
        }
        assert summary["model_loads"] == {"generate": num_generators, "reference": 1, "train": 1, "initial policy": 1}


def test_no_weight_goes_through_the_object_store(rounds: Rounds) -> None:
    assert rounds.stored.total == 0
    assert not [text for text in rounds.said if "through the driver" in text]
    assert [text for text in rounds.said if "generators hold policy 2: within" in text], "pushed while nobody sampled"


class Maker:
    """Kills the makers of parts on Ray once one of them, which works on the next, has made the first; keeps which files there
    were, then and at the end."""

    def __init__(self, folder: Path, *, kills: bool) -> None:
        self._folder, self._kills = folder, kills
        self.before: dict[str, int] = {}
        self.after: dict[str, int] = {}

    def __call__(self, event: Event) -> None:
        if not isinstance(event, Advanced) or event.stage != "data":
            return
        self.after = {path.name: path.stat().st_ino for path in self._folder.glob(f"data/{PREFIX}*/[0-9]*.json")}
        if self._kills and not self.before:
            for pid in driver.by_age("PoolActor"):
                os.kill(pid, signal.SIGKILL)
            self.before = self.after


def prepared(toy: Toy, folder: Path, kind: str, num_workers: int, maker: Maker) -> dict[str, bytes]:
    """What a preparation leaves in its run directory."""
    changes = {"run.runtime": kind, "data.num_workers": num_workers}
    with open_workspace(config(toy, folder, changes), "precompute") as workspace:
        data_stage(workspace, maker)
    files = [*folder.glob("data/*"), folder / "quarantine.jsonl"]
    return {path.name: path.read_bytes() for path in files}


def test_data_that_two_makers_on_ray_prepare_are_those_of_one_process(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They are killed, and what they were at is made again, no more."""
    monkeypatch.setattr(row_ranges, "PART_ROWS", 3)
    monkeypatch.setattr(row_ranges, "SMALL_BYTES", 1)
    maker = Maker(tmp_path / "ray", kills=True)
    on_ray = prepared(toy, tmp_path / "ray", "ray", 2, maker)
    died = [record.message for record in caplog.records if "SIGKILL" in record.message]
    assert all(text.startswith("data worker") for text in died)
    assert [text for text in died if "The item goes to another one (retry 1 of" in text], "it was killed at work"
    assert len(died) <= 2
    assert len(maker.after) == -(-NUM_TRAIN // 3) + -(-NUM_EVAL // 3)
    assert maker.before.items() <= maker.after.items(), "what was committed is not made again"
    assert 0 < len(maker.before) < len(maker.after) / 2
    for kind, num_workers in (("local", 2), ("local", 1)):
        folder = tmp_path / f"{kind}-{num_workers}"
        assert prepared(toy, folder, kind, num_workers, Maker(folder, kills=False)) == on_ray
    assert {"prepared.json", "train-00000.arrow", "eval-00000.arrow", "quarantine.jsonl"} <= on_ray.keys()
    assert not [name for name in on_ray if name.startswith(PREFIX)]


@pytest.mark.parametrize("kind", ["ray", "local"])
def test_an_error_in_a_worker_is_the_same_error(toy: Toy, tmp_path: Path, kind: str) -> None:
    """Weights that are none, which nobody sees before a worker loads them."""
    model = shutil.copytree(toy.model, tmp_path / "model")
    (model / "model.safetensors").write_bytes(b"not a model")
    settings = {"run.runtime": kind, "model.path": str(model)}
    with pytest.raises(RaydpoError) as caught:
        train(config(toy, tmp_path / "run", settings))
    said = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert "reference worker 0" in said
    assert "load_model" in said, "the traceback of the worker comes along"
