"""Config files that ask for more than any config does: said at once, with exit code 2, whatever they would expand to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raydpo.config.load import load
from raydpo.config.source import read_override, read_yaml
from raydpo.errors import ConfigError

BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 400))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("run: " + "[" * 33 + "]" * 33, "nested too deeply; up to 32"),
        ("run: " + "[" * 5000, "nested too deeply"),
        ("run: " + "{a: " * 5000, "nested too deeply"),
        ("- " * 20_000 + "x", "nested too deeply"),
        ("\n".join(" " * n + f"k{n}:" for n in range(600)), "nested too deeply"),
        (BOMB[: BOMB.index("a9:")], "stands for 234,567,910 values"),
        (BOMB, "stands for more than 1e300 values"),
        ("x:\n" + "- a\n" * 120_000, "stands for 120,00"),
        ("x: '" + "a" * (1 << 20) + "'", "524,288"),
        ("".join(f"k{n}: 1\n" for n in range(2000)), "2,000 keys; up to 1,000"),
        ("k" * 2000 + ": 1", "not valid YAML"),
        ("? " + "k" * 2000 + "\n: 1", "a key of 2,000 characters"),
        ("run: {seed: " + "9" * 5000 + "}", "a whole number of 5,000 digits"),
    ],
    ids=[
        "33",
        "lists",
        "maps",
        "dashes",
        "blocks",
        "bomb",
        "deep-bomb",
        "values",
        "text",
        "keys",
        "key",
        "asked",
        "digits",
    ],
)
def test_what_is_beyond_every_config_is_one_problem(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert caught.value.exit_code == 2
    (problem,) = caught.value.problems
    assert str(path) in problem
    assert any(part in problem for part in says.split("|"))
    assert len(problem) < 1000


def test_an_override_is_bounded_alike() -> None:
    assert "digits" in str(read_override("run.seed=" + "9" * 5000))
    assert "nested too deeply" in str(read_override("run.seed=" + "[" * 5000))


def test_aliases_of_a_few_values_are_written_out() -> None:
    tree, problems = read_yaml("a: &a [1, 2]\nb: *a\nc: {d: *a}", "x")
    assert not problems
    assert tree.plain() == {"a": [1, 2], "b": [1, 2], "c": {"d": [1, 2]}}


def test_an_alias_in_itself_is_said_as_ever() -> None:
    _, problems = read_yaml("a: &a [1, *a]", "x")
    assert [text for _, text in problems] == ["a: an alias that contains itself; write the value out."]


def test_thousands_of_files_may_be_named(tmp_path: Path) -> None:
    names = "\n".join(f"    - data/part-{n:05d}-of-05000.jsonl" for n in range(5000))
    tree, problems = read_yaml(f"data:\n  train:\n{names}", "x")
    assert not problems
    assert len(tree.plain()["data"]["train"]) == 5000


def test_what_never_ends_is_refused_by_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match=r"a\.yaml: this is a FIFO; allowed: a YAML file"):
        load(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match="/dev/zero: this is a device"):
        load("/dev/zero")
    with pytest.raises(ConfigError, match="NUL"):
        load("a\0.yaml")
