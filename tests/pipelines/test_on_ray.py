"""The same runs on Ray and without it: the same files, numbers and errors. What other tests of this folder say of the local
runtime then holds on Ray.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from raydpo.errors import ConfigError
from raydpo.pipelines import evaluate, iterate, train
from raydpo.schema.events import Advanced, Event, ignore
from tests.pipelines import driver
from tests.pipelines.rounds.toy_rounds import pairs, rounds_config
from tests.pipelines.toy import Toy, config, metrics, nats_by_row, weights

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

CASES: dict[str, dict[str, Any]] = {
    "two ranks, two workers": {"train.num_workers": 2, "reference.num_workers": 2, "train.zero_stage": 2},
    "moving reference": {"reference.sync_every": 2},
}


def names_in(folder: Path) -> set[str]:
    """Every file of a run directory, but those whose name has a clock or a random part."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith("tensorboard/")}


def run_both(toy: Toy, folder: Path, changes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found = {}
    for kind in ("ray", "local"):
        cache = {"run.runtime": kind, "reference.cache_dir": str(folder / f"cache-{kind}")}
        found[kind] = train(config(toy, folder / kind, {**changes, **cache}))
    return found


@pytest.mark.parametrize("case", CASES)
def test_training_leaves_the_same_files_with_the_same_numbers(toy: Toy, tmp_path: Path, case: str) -> None:
    found = run_both(toy, tmp_path, CASES[case])
    ray, local = tmp_path / "ray", tmp_path / "local"
    assert names_in(ray) == names_in(local)
    assert weights(ray / "model") == weights(local / "model") != weights(toy.model)
    assert metrics(ray) == metrics(local)
    caches = sorted(path.name for path in (tmp_path / "cache-ray").iterdir())
    assert caches == sorted(path.name for path in (tmp_path / "cache-local").iterdir())
    for name in caches:
        assert nats_by_row(tmp_path / "cache-ray" / name) == nats_by_row(tmp_path / "cache-local" / name)
    for part in ("eval", "train"):
        assert {k: v for k, v in found["ray"][part].items() if k != "model"} == {
            k: v for k, v in found["local"][part].items() if k != "model"
        }


def test_evaluation_and_resume_do_not_care_which_runtime_went_before(toy: Toy, tmp_path: Path) -> None:
    trained = train(config(toy, tmp_path / "run", {"run.runtime": "ray"}))
    again = train(config(toy, tmp_path / "run", {"run.runtime": "local"}))
    assert (again["train"]["resumed_from_step"], again["eval"]) == (4, trained["eval"])
    measured = [evaluate(config(toy, tmp_path / "run", {"run.runtime": kind}))["eval"] for kind in ("ray", "local")]
    assert measured[0] == measured[1]
    assert measured[0]["last"] == pytest.approx(trained["eval"]["last"], abs=1e-6)


@pytest.mark.parametrize("placement", ["colocated", "split"])
def test_rounds_make_the_same_pairs_and_policies(toy: Toy, tmp_path: Path, placement: str) -> None:
    changes = {"rounds.placement": placement, "generate.num_workers": 2}
    done = {}
    for kind in ("ray", "local"):
        settings = rounds_config(toy, tmp_path / kind, {**changes, "run.runtime": kind})
        done[kind] = [dict(found.metrics) for found in iterate(settings)]
    assert done["ray"] == done["local"]
    for index in range(2):
        assert pairs(tmp_path / "ray", index) == pairs(tmp_path / "local", index)
        model = f"rounds/{index:03d}/train/model"
        assert weights(tmp_path / "ray" / model) == weights(tmp_path / "local" / model)


def test_a_generator_that_dies_on_ray_costs_nothing(toy: Toy, tmp_path: Path) -> None:
    """As in rounds/test_deaths.py without Ray."""

    def kill(event: Event) -> None:
        if isinstance(event, Advanced) and event.stage == "generate" and not killed:
            killed.append(driver.by_age("PoolActor")[0])
            os.kill(killed[0], signal.SIGKILL)

    killed: list[int] = []
    changes = {"generate.num_workers": 2, "rounds.num_rounds": 1, "rounds.eval_prompts": []}
    for kind, observer in (("local", ignore), ("ray", kill)):
        assert (
            len(list(iterate(rounds_config(toy, tmp_path / kind, {**changes, "run.runtime": kind}), observer=observer)))
            == 1
        )
    assert killed
    assert pairs(tmp_path / "ray", 0) == pairs(tmp_path / "local", 0)


@pytest.mark.parametrize("kind", ["ray", "local"])
def test_an_error_in_a_worker_is_the_same_error(toy: Toy, tmp_path: Path, kind: str) -> None:
    settings = {"run.runtime": kind, "train.lora": {"rank": 2, "alpha": 4, "target_modules": ["no_such_layer"]}}
    with pytest.raises(ConfigError, match=r"train\.lora\.target_modules: .* fits no module") as caught:
        train(config(toy, tmp_path / "run", settings))
    assert any("Raised in train by rank 0" in note for note in caught.value.__notes__)


def test_nothing_of_ray_is_started_for_a_local_run(toy: Toy, tmp_path: Path) -> None:
    """Beside the Ray of this module, whose processes were there before."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    seen: set[str] = set()

    def look(_: object) -> None:
        seen.update(child.name() for child in psutil.Process().children(recursive=True) if child.pid not in before)

    changes = {"run.runtime": "local", "train.num_workers": 2, "reference.num_workers": 2}
    train(config(toy, tmp_path / "run", {**changes, "reference.cache_dir": str(tmp_path / "cache")}), look)
    assert seen, "two ranks are processes"
    assert not [name for name in seen if name.startswith("ray::") or name in ("raylet", "gcs_server")], seen
