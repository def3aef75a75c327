"""Generators and the policy that they hold."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from pathlib import Path

import pytest

from raydpo.driver.folder_scorer import FolderScorer
from raydpo.driver.generators import Generators, Policy
from raydpo.driver.ledger import Ledger
from raydpo.generate.engine import EngineSpec
from raydpo.generate.make_engine import make_engine
from raydpo.models.pretrained import load_model
from raydpo.schema.rank_events import PolicyProbe
from raydpo.schema.samples import Score
from raydpo.schema.shared_weights import SharedWeights
from raydpo.train.shared_push import share
from tests.pipelines.rounds.toy_rounds import rounds_config
from tests.pipelines.toy import Notes, Toy


def test_a_policy_without_a_probe_is_held_and_said_to_be_unproven_once(toy: Toy, machine: None) -> None:
    notes, config = Notes(), rounds_config(toy, toy.root / "unproven")
    with closing(Generators(config, EngineSpec(str(toy.model), max_length=64), notes)) as generators:
        for version in (1, 1, 2, 1):
            generators.hold(Policy(version, toy.other))
    assert notes.info == ["generators: 1, transformers on cpu in float32, threads: 1"]
    assert [text.split(" was loaded")[0] for text in notes.warning] == ["policy 1", "policy 2"]
    assert all("no probe.json" in text and str(toy.other) in text for text in notes.warning)


ASKED = Score((((0, 5, 6), (7, 8, 9)),))


def answered(folder: Path) -> PolicyProbe:
    """What the model in `folder` says, as its trainers would."""
    nats, top_ids, top_nats = make_engine(EngineSpec(str(folder))).score(ASKED.sequences)
    return PolicyProbe(ASKED, tuple(nats), tuple(top_ids), tuple(top_nats))


@pytest.mark.slow
def test_a_scorer_that_stands_has_the_weights_of_the_folder_that_is_named(toy: Toy, machine: None) -> None:
    section, ledger = rounds_config(toy, toy.root / "scorer").generate, Ledger()
    with closing(FolderScorer("other", EngineSpec(str(toy.model)), section, ledger, stands=True, moves=True)) as scorer:
        for folder in (toy.model, toy.other, toy.other, toy.model):
            ((_, found),) = scorer.score(folder, [ASKED])
            assert found.nats[0] == pytest.approx(answered(folder).nats[0], abs=1e-6)
    counts = ledger.report()
    assert [counts[name]["other"] for name in ("starts", "model_loads", "updates_in_place")] == [1, 1, 2]


@pytest.mark.slow
def test_the_only_generator_dies_between_the_push_and_its_proof(toy: Toy, processes: None) -> None:
    notes, config = Notes(), rounds_config(toy, toy.root / "unproved")
    with closing(Generators(config, EngineSpec(str(toy.model), max_length=64), notes)) as held:
        held.hold(Policy(0, toy.model))
        shared = share(load_model(toy.other, "float32", "auto"), 0, 0, 1)
        assert isinstance(shared, SharedWeights)
        held.take(shared, 1)
        place = held._pool._workers[0].place
        assert place is not None
        os.kill(place.pid, signal.SIGKILL)
        held.hold(Policy(1, toy.other, answered(toy.other)))
    assert any(text.startswith("1 generator holds policy 1") for text in notes.info)
