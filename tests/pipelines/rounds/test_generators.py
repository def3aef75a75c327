"""Generators and the policy that they hold."""

from __future__ import annotations

from contextlib import closing

from raydpo.driver.generators import Generators, Policy
from raydpo.generate.engine import EngineSpec
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
