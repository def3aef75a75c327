"""Each role is killed in each phase of rounds with roles that stand: pairs, weights and measures are those of a calm run.

With RAYDPO_SOAK=1 alone: every role dies in every phase, the driver too. Over one turn each role dies once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raydpo.config import Config
from raydpo.config.render import dump
from raydpo.pipelines import iterate
from raydpo.runtime import session
from tests.pipelines.rounds.kills import PHASES, ROLES, Killer, run
from tests.pipelines.rounds.toy_rounds import pairs, rounds_config
from tests.pipelines.toy import Toy, weights

IS_LONG = os.environ.get("RAYDPO_SOAK") == "1"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not IS_LONG, reason="all phases take minutes: RAYDPO_SOAK=1; test_deaths.py has some of them"),
]

NUM_ROUNDS, NUM_SAMPLED = 3, 8
SMALL: dict[str, Any] = {
    "run.runtime_in_process": False,
    "rounds.num_rounds": NUM_ROUNDS,
    "rounds.prompts_per_round": NUM_SAMPLED,
    "generate.prompts_per_item": 2,
    "judge.num_workers": 1,
    "reference.rows_per_shard": 4,
    "reference.weights": "whole",
    "train.save_every": 1,
    "train.global_batch_pairs": 4,
}
QUIET_ROUNDS = 1
"""After it all roles stand. With weights that are said to be whole, trainers do not score the reference of the first round."""


@dataclass(frozen=True)
class Calm:
    """Rounds of a placement in which nobody died."""

    toy: Toy
    placement: str
    undisturbed: Path

    def config(self, name: str) -> Config:
        """Of a run with a reference cache of its own, which is not filled yet."""
        folder = self.toy.root / f"kills-{name}-{self.placement}"
        own = {"rounds.placement": self.placement, "reference.cache_dir": f"{folder}-cache"}
        return rounds_config(self.toy, folder, {**SMALL, **own})

    def assert_same(self, config: Config) -> None:
        assert made(Path(config.run.dir)) == made(self.undisturbed)


def made(folder: Path) -> list[Any]:
    """Pairs and weights of all rounds, and what was measured."""
    summary = json.loads((folder / "summary.json").read_text())
    models = [weights(folder / f"rounds/{index:03d}/train/model") for index in range(NUM_ROUNDS)]
    measured = [summary["initial"], *(found["metrics"] for found in summary["rounds"])]
    return [[pairs(folder, index) for index in range(NUM_ROUNDS)], models, measured]


@pytest.fixture(scope="module", params=["colocated", "split"])
def calm(request: pytest.FixtureRequest, toy: Toy) -> Iterator[Calm]:
    found = Calm(toy, request.param, toy.root / f"kills-calm-{request.param}")
    with session(kind="local", local_cpus=4, in_process=False):
        rounds = list(iterate(found.config("calm")))
        assert [each.staleness for each in rounds] == [0, *[int(request.param == "split")] * (NUM_ROUNDS - 1)]
        yield found


def victims(turn: int) -> dict[str, str]:
    """Who dies in which phase: each role once, and over as many turns as there are phases in each of them."""
    return {PHASES[(turn + number) % len(PHASES)]: role for number, role in enumerate(ROLES)}


@pytest.mark.parametrize("turn", range(len(PHASES)))
def test_whoever_dies_in_whichever_phase_nothing_is_different(calm: Calm, turn: int) -> None:
    config, killer = calm.config(f"turn-{turn}"), Killer(victims(turn), QUIET_ROUNDS, NUM_SAMPLED)
    run(config, killer)
    assert killer.killed == victims(turn)
    assert len(killer.files) == NUM_ROUNDS
    assert not [path for path in killer.files if path.exists()], "weights were left in shared memory"
    calm.assert_same(config)


def test_the_driver_dies_in_each_phase(calm: Calm) -> None:
    config = calm.config("driver")
    file = calm.toy.root / f"kills-driver-{calm.placement}.yaml"
    file.write_text(dump(config))
    for phase in PHASES:
        command = [sys.executable, "-m", "tests.pipelines.rounds.kills", str(file), phase]
        ended = subprocess.run(command, capture_output=True, env={**os.environ, "RAYDPO_LOCAL_CPUS": "4"}, check=False)
        assert ended.returncode == -signal.SIGKILL, (phase, ended.stderr.decode())
    assert len(list(iterate(config))) == NUM_ROUNDS
    calm.assert_same(config)
