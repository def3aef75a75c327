"""Rules: golden values, and mistakes in patterns and files that stop before anything is judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raydpo.errors import ConfigError, DataError
from raydpo.judge.rules import exact_judge, is_json, json_judge, length_judge, regex_judge
from raydpo.judge.verdict import judge_row


def test_regex_is_found_anywhere() -> None:
    judge = regex_judge(r"\bfour(teen)?\b")
    assert judge("p", ["it is four.", "fourteen", "forty-fourth", "", "FOUR"]) == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert regex_judge("(?s)^a.b$")("p", ["a\nb", "xa\nb"]) == [1.0, 0.0]


@pytest.mark.parametrize("pattern", ["(", "a**", "[z-a]", "(?P<n>x)(?P<n>y)"])
def test_a_bad_pattern_is_a_config_error(pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"judge\.pattern: .* is not a regular expression"):
        regex_judge(pattern)


def write(folder: Path, *rows: Any) -> str:
    path = folder / "answers.jsonl"
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines))
    return str(path)


def test_exact_compares_with_the_answer_of_the_prompt(tmp_path: Path) -> None:
    path = write(tmp_path, {"prompt": "2+2", "answer": " 4\n"}, b"", {"prompt": "é", "answer": "É", "more": 1})
    judge = exact_judge(path)
    assert judge("2+2", ["4", "  4 \n", "4.", "", "four"]) == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert judge("é", ["É", "é"]) == [1.0, 0.0]


def test_a_prompt_without_an_answer_has_no_verdict(tmp_path: Path) -> None:
    path = write(tmp_path, {"prompt": "2+2", "answer": "4"})
    verdict = judge_row(exact_judge(path), "2+2 ", ["4"])
    assert verdict.scores is None
    assert verdict.reason == f"no row of {path} has the prompt '2+2 '"


def test_every_problem_of_the_answers_is_told_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"prompt": "a", "answer": "1"},
        b"{",
        ["a"],
        {"prompt": "b"},
        {"prompt": "c", "answer": 4},
        b'{"prompt": "\xff"}',
        {"prompt": "a", "answer": "1 "},
        {"prompt": "a", "answer": "2"},
    )
    with pytest.raises(DataError) as caught:
        exact_judge(path)
    problems = caught.value.problems
    assert [problem.split(": ")[1] for problem in problems] == [f"{path}:{number}" for number in (2, 3, 4, 5, 6, 8)]
    assert "of type list; an object" in problems[1]
    assert "answer is missing" in problems[2]
    assert "answer is of type int; text is needed" in problems[3]
    assert "another answer" in problems[5]


def test_answers_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        exact_judge(str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match="has no rows"):
        exact_judge(write(tmp_path, b"\n"))


@pytest.mark.parametrize(
    "text",
    ["{}", " \t\r\n[1, 2.5e3, null]\n ", '"text"', "-0", "true", "9" * 5000, '{"a": {"b": []}}', '"\\ud83d\\ude00"'],
)
def test_json(text: str) -> None:
    assert is_json(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "NaN", "[NaN]", "-Infinity", "Infinity", "{'a': 1}", "{a: 1}", "[1,]", '{"a": 1} {"b": 2}', "01", "+1"),
        *("True", "\u00a0{}", "\ufeff{}", '"\n"', "```json\n{}\n```", "1.", "// no\n{}", "[" * 100_000),
    ],
)
def test_not_json(text: str) -> None:
    assert not is_json(text)


def test_json_judge_scores() -> None:
    assert json_judge()("p", ["{}", "{", "3"]) == [1.0, 0.0, 1.0]


def test_length_is_a_relative_distance_in_characters() -> None:
    judge = length_judge(4)
    assert judge("p", ["abcd", "ab", "", "abcdef", "x" * 12, "日本語。"]) == [0.0, -0.5, -1.0, -0.5, -2.0, 0.0]
