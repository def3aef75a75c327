"""From the section of a config to a judge; ensembles among them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from raydpo.config.round_sections import JUDGES, JudgeSection
from raydpo.errors import ConfigError, DataError
from raydpo.judge import Row, Verdict, build_judge, judge_row, judge_rows, local_model
from raydpo.judge.ensemble import Ensemble, Member
from raydpo.judge.reward_model import RewardModel
from raydpo.models.resolve import ResolvedModel
from tests.judge.servers import longer, serving
from tests.judge.test_reward_model import save


def section(kind: str, **values: Any) -> JudgeSection:
    return JudgeSection.model_validate({"kind": kind, **values})


def complete(conversations: Sequence[Any]) -> list[str]:
    return [longer({"messages": messages}) for messages in conversations]


def test_every_kind_is_built(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text(json.dumps({"prompt": "p", "answer": "bb"}))
    kinds: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
        "function": ({"function": "tests.judge.test_build:num_b"}, (0.0, 2.0)),
        "regex": ({"pattern": "^a"}, (1.0, 0.0)),
        "exact": ({"answers": str(tmp_path / "answers.jsonl")}, (0.0, 1.0)),
        "json": ({}, (0.0, 0.0)),
        "length": ({"target_length": 2}, (-0.5, 0.0)),
        "pairwise": ({"model": "some/model"}, (0.0, 1.0)),
        "ensemble": ({"members": [{"kind": "regex", "pattern": "a", "weight": 3}, {"kind": "json"}]}, (3.0, 0.0)),
    }
    assert kinds.keys() | {"reward_model"} == JUDGES.keys()
    for kind, (values, scores) in kinds.items():
        assert judge_row(build_judge(section(kind, **values), complete), "p", ["a", "bb"]) == Verdict(scores), kind


def num_b(prompt: str, responses: list[str]) -> list[int]:
    return [response.count("b") for response in responses]


def test_a_reward_model_is_built(tmp_path: Path) -> None:
    judge = build_judge(section("reward_model", model=str(save(tmp_path)), tokens_per_batch=99))
    assert isinstance(judge, RewardModel)
    assert (judge.tokens_per_batch, judge.device) == (99, "cpu")
    assert judge_row(judge, "p", ["a"]).scores is not None
    with pytest.raises(ConfigError, match=r"judge\.model: .*none does not exist"):
        build_judge(section("reward_model", model=str(tmp_path / "none")))


def test_a_pairwise_judge_needs_somebody_to_ask() -> None:
    with pytest.raises(ConfigError, match=r"judge\.endpoint is missing, and no local model .* 'some/model'"):
        build_judge(section("pairwise", model="some/model"))
    with serving(longer) as served:
        judge = build_judge(section("pairwise", model="m", endpoint=served.url), lambda conversations: ["B"])
        assert judge_row(judge, "p", ["a", "bb"]) == Verdict((0.0, 1.0))


def test_local_model() -> None:
    here = {"kind": "pairwise", "model": "a/b"}
    there = {"kind": "pairwise", "model": "c/d", "endpoint": "http://h/v1"}
    assert local_model(section(**here)) == "a/b"
    assert local_model(section(**there)) is None
    assert local_model(section("json")) is None
    assert local_model(section("ensemble", members=[there, {"kind": "ensemble", "members": [here, here]}])) == "a/b"
    two = section("ensemble", members=[here, {**here, "model": "e/f"}])
    for ask in (local_model, lambda it: build_judge(it, complete)):
        with pytest.raises(ConfigError, match=r"name 2 models \(a/b, e/f\)"):
            ask(two)


def test_an_ensemble_says_which_member_is_wrong() -> None:
    with pytest.raises(ConfigError, match=r"judge\.members, number 1: judge\.pattern: '\(' is not a regular"):
        build_judge(section("ensemble", members=[{"kind": "json"}, {"kind": "regex", "pattern": "("}]))


def test_a_file_of_a_member_is_named_with_its_number(tmp_path: Path) -> None:
    members = [{"kind": "json"}, {"kind": "exact", "answers": str(tmp_path / "none.jsonl")}]
    with pytest.raises(DataError, match=r"judge\.members, number 1: judge\.answers: .*none\.jsonl cannot be read"):
        build_judge(section("ensemble", members=members))


def test_models_that_were_found_are_not_looked_for_again(tmp_path: Path) -> None:
    wanted = section("reward_model", model="owner/name")
    found = ResolvedModel("owner/name", None, save(tmp_path))
    assert isinstance(build_judge(wanted, models={"owner/name": found}), RewardModel)


def fails_on_bad(prompt: str, responses: list[str]) -> list[float]:
    if prompt == "bad":
        raise ValueError("what a prompt")
    return [float(len(response)) for response in responses]


class Many:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(self, prompt: str, responses: list[str]) -> list[float]:
        raise AssertionError("asked alone")

    def many(self, rows: Sequence[Row]) -> list[Verdict]:
        self.num_calls += 1
        return [Verdict(tuple(10.0 for _ in responses)) for _, responses in rows]


def test_weighted_sum_and_a_member_that_fails() -> None:
    many = Many()
    judge = Ensemble([Member("first", 2.0, many), Member("second", -0.5, fails_on_bad)])
    verdicts = judge_rows(judge, [("p", ["a", "bbbb"]), ("bad", ["a"]), ("p", [])])
    assert verdicts == [Verdict((19.5, 18.0)), Verdict(None, "second: ValueError: what a prompt"), Verdict(())]
    assert many.num_calls == 1
    assert judge_row(judge, "p", ["a"]) == Verdict((19.5,))
    assert judge_row(judge, "bad", ["a"]) == verdicts[1]


def test_a_sum_that_is_not_finite_is_no_score() -> None:
    judge = Ensemble([Member("a", 1e308, fails_on_bad), Member("b", 1e308, fails_on_bad)])
    assert "score 0 is inf" in judge_row(judge, "p", ["abc"]).reason
