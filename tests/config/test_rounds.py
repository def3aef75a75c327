"""The section `judge`: each kind reads its own keys and no other's, and members are checked like a judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raydpo.config.load import load
from raydpo.config.render import dump
from raydpo.config.round_sections import JUDGE_FREE, JUDGES, JudgeSection
from raydpo.errors import ConfigError

VALUES: dict[str, Any] = {
    "function": "package.module:name",
    "pattern": "^yes",
    "answers": "answers.jsonl",
    "target_length": 40,
    "model": "owner/name",
    "tokens_per_batch": 100,
    "endpoint": "http://host:8000/v1",
    "api_key_variable": "KEY",
    "instruction": "Short is good.",
    "max_tokens": 50,
    "timeout_s": 7.0,
    "vllm": {"tensor_parallel_size": 2},
    "members": [{"kind": "json", "weight": 2.0}, {"kind": "regex", "pattern": "a: [b, 'c']"}],
}
COMMON = {
    "weight": 0.5,
    "num_workers": 2,
    "cpus_per_worker": 0.5,
    "gpus_per_worker": 1,
    "scheduling": {"strategy": "SPREAD"},
    "max_retries": 0,
    "hang_timeout_s": 60,
}


def full(kind: str) -> dict[str, Any]:
    """A judge with every key that its kind reads, none at its default."""
    needed, optional = JUDGES[kind]
    return {"kind": kind, **{key: VALUES[key] for key in (*needed, *optional)}, **COMMON, "max_failed_fraction": 0.5}


def test_every_key_belongs_to_a_kind() -> None:
    read = {key for needed, optional in JUDGES.values() for key in (*needed, *optional)}
    assert read == VALUES.keys()
    outside = {"settings"}  # of judges of other packages alone
    assert {"kind", "max_failed_fraction", *read, *outside, *COMMON} == JudgeSection.model_fields.keys()


def test_what_may_change_between_two_calls() -> None:
    assert JudgeSection.model_fields.keys() > JUDGE_FREE
    assert COMMON.keys() - {"weight"} | {"max_failed_fraction"} <= JUDGE_FREE


@pytest.mark.parametrize("kind", JUDGES)
def test_a_kind_reads_its_keys(kind: str) -> None:
    section = JudgeSection.model_validate(full(kind))
    assert section.model_dump(mode="json", exclude_unset=True) == full(kind)


@pytest.mark.parametrize("kind", JUDGES)
def test_a_key_of_another_kind_is_refused(kind: str) -> None:
    for key in VALUES.keys() - full(kind).keys():
        with pytest.raises(ConfigError, match=f"kind: {kind} does not read {key}; leave it out"):
            JudgeSection.model_validate({**full(kind), key: VALUES[key]})


@pytest.mark.parametrize("kind", [kind for kind, (needed, _) in JUDGES.items() if needed])
def test_a_key_that_a_kind_needs(kind: str) -> None:
    for key in JUDGES[kind][0]:
        for missing in ({}, {key: ""}, {key: []}, {key: None}):
            values = {name: value for name, value in full(kind).items() if name != key} | missing
            with pytest.raises(ConfigError):
                JudgeSection.model_validate(values)
        with pytest.raises(ConfigError, match=f"kind: {kind} needs {key}"):
            JudgeSection.model_validate({name: value for name, value in full(kind).items() if name != key})


def test_a_function_need_not_be_named() -> None:
    """One that is handed in may have a section as well."""
    assert JudgeSection.model_validate({"kind": "function", "max_failed_fraction": 0.5}).function is None


def test_a_key_at_its_default_does_no_harm() -> None:
    assert (
        JudgeSection.model_validate({"kind": "json", "tokens_per_batch": 8192, "members": [], "pattern": None}).kind
        == "json"
    )


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ({"kind": "regex"}, "kind: regex needs pattern"),
        ({"kind": "json", "pattern": "a"}, "kind: json does not read pattern"),
        ({"kind": "poetry"}, "Input should be 'function'"),
        ({"kind": "json", "wieght": 2}, "wieght"),
        (
            {"kind": "ensemble", "members": [{"kind": "json"}, {"kind": "length"}]},
            "members, number 1: .*needs target_length",
        ),
        ({}, "kind: Field required"),
        ({"kind": "function"}, "kind: function needs function"),
        ({"kind": "json", "num_workers": 2}, "num_workers of a member would be without effect"),
    ],
)
def test_members_are_validated_with_their_number(member: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s)members, number 1: .*{message}"):
        JudgeSection.model_validate({"kind": "ensemble", "members": [{"kind": "json"}, member]})


def test_a_member_is_described_in_one_line() -> None:
    with pytest.raises(ConfigError) as caught:
        JudgeSection.model_validate({"kind": "ensemble", "members": [{"kind": "length", "target_length": 0, "x": 1}]})
    (problem,) = caught.value.problems
    assert problem.startswith(
        "members, number 0: target_length: Input should be greater than or equal to 1; x: Extra inputs are not permitted"
    )


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(f"run: {{dir: a}}\nmodel: {{path: b}}\n{text}")
    return path


@pytest.mark.parametrize("kind", JUDGES)
def test_a_dumped_judge_loads_back(kind: str, tmp_path: Path) -> None:
    import yaml

    loaded = load(write(tmp_path, yaml.safe_dump({"judge": full(kind)})))
    assert loaded.config.judge == JudgeSection.model_validate(full(kind))
    again = tmp_path / "again.yaml"
    again.write_text(dump(loaded.config, loaded.origins))
    assert load(again).config == loaded.config


def test_a_file_with_a_wrong_judge_says_where(tmp_path: Path) -> None:
    path = write(tmp_path, "judge:\n  kind: json\n  pattern: a\n")
    with pytest.raises(ConfigError) as caught:
        load(path)
    (problem,) = caught.value.problems
    assert "judge" in problem
    assert "kind: json does not read pattern" in problem
    assert "run.yaml:" in problem
