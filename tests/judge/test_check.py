"""What is found wrong with a section before anything was sampled: every problem, in the words of the judge itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raydpo.judge import problems_of
from tests.judge.test_build import section
from tests.judge.test_reward_model import save


def test_nothing_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text('{"prompt": "p", "answer": "a"}\n')
    model = str(save(tmp_path / "model"))
    members: list[dict[str, Any]] = [
        {"kind": "function", "function": "tests.judge.test_build:num_b"},
        {"kind": "regex", "pattern": "a"},
        {"kind": "exact", "answers": str(tmp_path / "answers.jsonl")},
        {"kind": "json"},
        {"kind": "length", "target_length": 3},
        {"kind": "reward_model", "model": model},
        {"kind": "pairwise", "model": model},
        {"kind": "pairwise", "model": "any", "endpoint": "http://nowhere.invalid/v1"},
    ]
    for member in members:
        assert problems_of(section(**member)) == [], member
    assert problems_of(section("ensemble", members=members)) == []


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("function", {"function": "no.such:judge"}, "judge.function: no.such could not be imported"),
        ("function", {"function": "json:dumpz"}, "judge.function: json has no dumpz"),
        ("regex", {"pattern": "("}, "judge.pattern: '(' is not a regular expression"),
        ("exact", {"answers": "no/such.jsonl"}, "judge.answers: no/such.jsonl cannot be read"),
        ("pairwise", {"model": "m", "endpoint": "host"}, "judge.endpoint: 'host' is not a URL"),
        ("pairwise", {"model": "./none"}, "judge.model: ./none does not exist"),
        ("reward_model", {"model": "./none"}, "judge.model: ./none does not exist"),
    ],
)
def test_a_mistake_is_found(kind: str, values: dict[str, Any], message: str) -> None:
    (problem,) = problems_of(section(kind, **values))
    assert message in problem
    (of_member,) = problems_of(section("ensemble", members=[{"kind": "json"}, {"kind": kind, **values}]))
    assert of_member == f"judge.members, number 1: {problem}"


def test_a_reward_model_has_one_output_and_weights_that_may_be_read(tmp_path: Path) -> None:
    (problem,) = problems_of(section("reward_model", model=str(save(tmp_path / "three", num_labels=3))))
    assert "has 3 outputs; a reward model has one" in problem
    pickled = save(tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    for kind in ("reward_model", "pairwise"):
        (problem,) = problems_of(section(kind, model=str(pickled)))
        assert problem.startswith(f"judge.model: {pickled} holds only pytorch_model.bin")


def test_all_mistakes_of_an_ensemble_are_said() -> None:
    members = [
        {"kind": "regex", "pattern": "("},
        {"kind": "ensemble", "members": [{"kind": "json"}, {"kind": "exact", "answers": "no/such.jsonl"}]},
        {"kind": "pairwise", "model": "./a"},
        {"kind": "pairwise", "model": "./b"},
    ]
    found = problems_of(section("ensemble", members=members))
    assert [problem.split(":")[0] for problem in found] == [
        "judge.members",
        "judge.members, number 0",
        "judge.members, number 1",
        "judge.members, number 2",
        "judge.members, number 3",
    ]
    assert "name 2 models (./a, ./b)" in found[0]
    assert found[2].startswith("judge.members, number 1: judge.members, number 1: judge.answers: ")


def test_a_module_beside_the_command_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers look in the folder where the command runs; a console script does not."""
    (tmp_path / "judge_of_this_folder.py").write_text(
        "def score(prompt, responses):\n    return [0.0] * len(responses)\n"
    )
    wanted = section("function", function="judge_of_this_folder:score")
    assert len(problems_of(wanted)) == 1
    monkeypatch.chdir(tmp_path)
    assert problems_of(wanted) == []
