"""`rounds.sync_every` and `rounds.max_staleness`: which policy samples for which round, whoever worked at the same time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raydpo.artifacts import digest_of, local_path
from raydpo.config import Config
from raydpo.errors import ResumeError
from raydpo.generate.engine import EngineSpec
from raydpo.generate.transformers_engine import TransformersEngine
from raydpo.pipelines import iterate
from raydpo.rounds.produce import requests_of, sampling_of
from raydpo.rounds.setup import set_up
from raydpo.schema.events import ignore
from tests.pipelines.rounds.toy_rounds import generations, pairs, rounds_config
from tests.pipelines.toy import Notes, Toy

pytestmark = pytest.mark.slow

ONE_STEP: dict[str, Any] = {
    "rounds.num_rounds": 5,
    "rounds.prompts_per_round": 8,
    "rounds.eval_prompts": [],
    "train.global_batch_pairs": 64,
}
SPLIT = {**ONE_STEP, "rounds.placement": "split"}
CASES: dict[str, tuple[dict[str, Any], list[int]]] = {
    "semi-online": ({**ONE_STEP, "rounds.sync_every": 2}, [0, 0, 2, 2, 4]),
    "offline": ({**ONE_STEP, "rounds.sync_every": 10**6}, [0, 0, 0, 0, 0]),
    "two ahead": ({**SPLIT, "rounds.max_staleness": 2}, [0, 0, 0, 1, 2]),
    "two ahead, semi-online": ({**SPLIT, "rounds.max_staleness": 2, "rounds.sync_every": 2}, [0, 0, 0, 0, 2]),
}


def one_by_one(config: Config, index: int, version: int) -> list[list[int]]:
    """The answers of a round as a single engine gives them that reads the folder of a policy."""
    setup = set_up(config, None, ignore)
    assert config.rounds is not None
    prompts = {prompt.key: prompt for prompt in setup.prompts}
    chosen = [prompts[row["prompt"]] for row in generations(Path(config.run.dir), index)]
    threads = int(config.generate.cpus_per_worker)
    engine = TransformersEngine(EngineSpec(str(setup.layout.policy(version)), threads=threads))
    requests = requests_of(config, chosen, sampling_of(config), version, index)
    found = [engine.generate(each.prompts, each.sampling, each.seed) for each in requests]
    return [list(sample.ids) for lot in found for group in lot for sample in group]


@pytest.mark.parametrize("case", CASES)
def test_rounds_are_those_of_one_who_does_everything_in_turn(toy: Toy, machine: None, case: str) -> None:
    changes, wanted = CASES[case]
    config = rounds_config(toy, toy.root / f"stale-{case.replace(' ', '-')}", changes)
    attempt = iterate(config)
    next(attempt)
    attempt.close()  # a driver that ends in the middle
    found = list(iterate(config))
    folder = local_path(config.run.dir)
    assert [{row["version"] for row in generations(folder, index)} for index in range(5)] == [{v} for v in wanted]
    assert [each.staleness for each in found] == [index - version for index, version in enumerate(wanted)]
    for index in (3, 4):
        sampled = [sample["ids"] for row in generations(folder, index) for sample in row["samples"]]
        assert sampled == one_by_one(config, index, wanted[index])
        assert {row["version"] for row in pairs(folder, index)} == {wanted[index]}
        ages = {name: number for name, number in found[index].loop.items() if name.startswith("pairs_of_age/")}
        assert ages == {f"pairs_of_age/{index - wanted[index]}": len(pairs(folder, index))}


def test_a_round_that_is_longer_than_the_steps_between_syncs_is_said(toy: Toy, machine: None) -> None:
    changes = {**ONE_STEP, "rounds.num_rounds": 2, "rounds.sync_every": 1, "train.global_batch_pairs": 4}
    config, notes = rounds_config(toy, toy.root / "stale-longer", changes), Notes()
    list(iterate(config, observer=notes))
    (said,) = [text for text in notes.warning if "rounds.sync_every" in text]
    assert "rounds.sync_every: 1, and round 0 trained 2 steps" in said
    assert "rounds.prompts_per_round" in said


def test_rounds_of_before_syncs_were_counted_go_on(toy: Toy, machine: None) -> None:
    """Their summaries say nothing of syncs: generators took a policy after every round."""
    folder = toy.root / "stale-before"
    changes = {**ONE_STEP, "rounds.num_rounds": 1}
    list(iterate(rounds_config(toy, folder, changes)))
    path = folder / "rounds/000/summary/COMMIT.json"
    record = json.loads(path.read_text())
    assert record["meta"].pop("synced") == [1, 0]
    body = {"files": record["files"], "meta": record["meta"]}
    path.write_text(json.dumps({**body, "digest": digest_of(body)}))
    found = list(iterate(rounds_config(toy, folder, {**changes, "rounds.num_rounds": 2})))
    assert [each.staleness for each in found] == [0, 0]
    assert {row["version"] for row in generations(folder, 1)} == {1}


def test_another_schedule_of_syncs_is_another_run(toy: Toy, machine: None) -> None:
    folder = toy.root / "stale-other"
    config = rounds_config(toy, folder, {**ONE_STEP, "rounds.num_rounds": 1})
    list(iterate(config))
    path = folder / "rounds.json"
    before = json.loads(path.read_text())
    assert before.pop("rounds.sync_every") is None
    path.write_text(json.dumps(before))  # a run of before there was the key
    assert len(list(iterate(config))) == 1
    with pytest.raises(ResumeError, match=r"rounds\.sync_every"):
        list(iterate(rounds_config(toy, folder, {**ONE_STEP, "rounds.num_rounds": 1, "rounds.sync_every": 3})))
