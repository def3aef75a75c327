"""Generators that sleep while trainers work: what decides it, what a sleeper refuses, and rounds on Ray with declared GPUs."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from raydpo import iterate
from raydpo.driver.generators import Generators, Policy
from raydpo.driver.ledger import Ledger
from raydpo.driver.yielding import yielding
from raydpo.errors import WorkerError
from raydpo.generate.engine import EngineSpec
from raydpo.generate.transformers_engine import TransformersEngine
from raydpo.generate.worker import Generator
from raydpo.schema.samples import LoadFolder, Score, Sleep, Wake
from tests.pipelines.rounds.toy_rounds import generations, rounds_config
from tests.pipelines.toy import Notes, Toy
from tests.runtime.declared import declared_ray

SLEEPS = {
    "run.runtime": "ray",
    "generate.engine": f"{__name__}:Sleeper",
    "generate.gpus_per_worker": 1,
    "rounds.eval_prompts": [],
    "rounds.num_rounds": 3,
}
ASKED = Score((((0, 5, 6), (7, 8, 9)),))


class Sleeper(TransformersEngine):
    """Computes on the CPU, whatever GPU it was given; its weights are gone or kept while it sleeps, as vLLM's are."""

    sleeps = can_sleep = True

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(replace(spec, use_gpu=False))

    def sleep(self, keeps_weights: bool) -> None:
        if not keeps_weights:
            for weight in self._model.parameters():
                weight.data.zero_()

    def wake(self) -> None:
        pass


class Oversleeper(Sleeper):
    """Finds its memory taken."""

    def wake(self) -> None:
        raise WorkerError("no memory")


def test_a_sleeper_refuses_and_wakes_with_its_policy_or_with_none(toy: Toy) -> None:
    generator = Generator(EngineSpec(str(toy.model), f"{__name__}:Sleeper", max_length=64))
    before = generator(ASKED)
    assert generator(Wake()) is False, "it did not sleep"
    assert generator(Sleep(keeps_weights=True)) is True
    with pytest.raises(WorkerError, match="sleeps"):
        generator(ASKED)
    assert generator(Wake()) is True
    assert generator(ASKED) == before
    assert generator(Sleep(keeps_weights=False)) is True
    assert generator(Wake()) is True
    with pytest.raises(WorkerError, match="holds no whole policy"):
        generator(ASKED)
    generator(LoadFolder(str(toy.model), 0))
    assert generator(ASKED) == before


def test_an_engine_that_cannot_sleep_says_so_and_goes_on(toy: Toy) -> None:
    generator = Generator(EngineSpec(str(toy.model), max_length=64))
    assert generator(Sleep(keeps_weights=False)) is False
    assert generator(ASKED).version == 0


@pytest.mark.parametrize(
    ("changes", "how", "why", "num_gpus"),
    [
        ({}, "sleeps", "seats on the same GPUs", 1),
        ({"train.gpus_per_worker": 1, "train.num_workers": 3}, "sleeps", "seats", 3),
        ({"generate.gpus_per_worker": 0}, "stays", "on CPUs", 0),
        ({"rounds.placement": "split"}, "stays", "devices of their own", 0),
        ({"generate.engine": "transformers"}, "stopped", "transformers cannot sleep", 0),
        ({"generate.engine": "vllm"}, "stopped", "enable_sleep_mode is off", 0),
        ({"generate.engine": "vllm", "generate.vllm": {"enable_sleep_mode": True}}, "sleeps", "seats", 1),
        ({"run.runtime": "local"}, "stopped", "run.runtime: local", 0),
        ({"generate.gpus_per_worker": 0.5}, "stopped", "generate.gpus_per_worker is 0.5", 0),
        ({"reference.gpus_per_worker": 1, "reference.num_workers": {"min": 1, "max": 2}}, "stopped", "a range", 0),
        ({"generate.scheduling": {"resources": {"nvme": 1}}}, "stopped", "generate.scheduling", 0),
    ],
)
def test_what_decides(toy: Toy, changes: Mapping[str, Any], how: str, why: str, num_gpus: int) -> None:
    found = yielding(rounds_config(toy, toy.root / "decided", {**SLEEPS, **changes}))
    assert (found.how, found.num_gpus) == (how, num_gpus)
    assert why in found.why


def test_vllm_sleeps_by_these_names() -> None:
    vllm = pytest.importorskip("vllm")
    from vllm.engine.arg_utils import EngineArgs

    assert {"level", "mode"} <= set(inspect.signature(vllm.LLM.sleep).parameters)
    assert inspect.signature(vllm.LLM.wake_up).parameters["tags"].default is None
    assert "enable_sleep_mode" in inspect.signature(EngineArgs).parameters


@pytest.fixture
def declared_gpus() -> Iterator[None]:
    with declared_ray(1):
        yield


@pytest.mark.ray
@pytest.mark.slow
def test_rounds_with_one_generator_that_sleeps_in_each(toy: Toy, declared_gpus: None) -> None:
    folder, notes = toy.root / "sleeps", Notes()
    list(iterate(rounds_config(toy, folder, SLEEPS), observer=notes))
    summary = json.loads((folder / "summary.json").read_text())
    counted = summary["yielding"]["generate"]
    numbers = [counted[name] for name in ("sleeps", "wakes", "stops")]
    assert (counted["how"], numbers) == ("sleeps", [3, 3, 0]), "the last policy is proved, too"
    assert (summary["starts"]["generate"], summary["model_loads"]["generate"]) == (1, 1)
    held = [text.split(":")[0] for text in notes.info if "generator holds" in text]
    assert held == [f"1 generator holds policy {version}" for version in (1, 2, 3)], "compared after each waking"
    plain = toy.root / "plain"
    changes = {"run.runtime": "local", "generate.engine": "transformers", "generate.gpus_per_worker": 0}
    list(iterate(rounds_config(toy, plain, {**SLEEPS, **changes})))
    for index in range(3):
        assert generations(folder, index) == generations(plain, index), "the samples of generators that stay"


@pytest.mark.ray
@pytest.mark.slow
def test_one_that_does_not_wake_is_started_anew(toy: Toy, declared_gpus: None) -> None:
    from raydpo.runtime import gpus_shared, session

    name, notes, ledger = f"{__name__}:Oversleeper", Notes(), Ledger()
    config = rounds_config(toy, toy.root / "oversleeps", {**SLEEPS, "generate.engine": name})
    engine = EngineSpec(str(toy.model), name, max_length=64)
    with session(), gpus_shared(1), closing(Generators(config, engine, notes, ledger)) as held:
        held.hold(Policy(0, toy.model))
        held.make_room()
        held.hold(Policy(0, toy.model))
        assert [found.version for _, found in held.score([ASKED])] == [0]
    assert ["no memory" in text and text.endswith("start anew.") for text in notes.warning] == [True]
    assert ledger.report()["starts"] == {"generate": 2}
