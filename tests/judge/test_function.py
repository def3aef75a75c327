"""A judge by name: found, or a sentence that says what is wrong with the name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from raydpo.errors import ConfigError
from raydpo.judge.function import function_judge, importable

MODULE = """\
limit = 3

def shortness(prompt, responses):
    return [-len(response) for response in responses]
"""


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "judge_names"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "good.py").write_text(MODULE)
    (package / "broken.py").write_text("1 / 0")
    (package / "unfinished.py").write_text("def f(")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_function_is_imported() -> None:
    assert function_judge("judge_names.good:shortness")("p", ["abc", ""]) == [-3, 0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("judge_names.good.shortness", "is not of the form package.module:name"),
        ("judge_names.good:", "is not of the form"),
        (":shortness", "is not of the form"),
        ("judge_names/good.py:shortness", "is not of the form"),
        ("judge_names.good:shortness:x", "is not of the form"),
        ("judge_names.nowhere:f", "judge_names.nowhere could not be imported: ModuleNotFoundError"),
        ("judge_names.broken:f", "could not be imported: ZeroDivisionError: division by zero"),
        ("judge_names.unfinished:f", "could not be imported: SyntaxError"),
        ("judge_names.good:shortnes", "has no shortnes; .* Did you mean judge_names.good:shortness?"),
        ("judge_names.good:limit", "limit in judge_names.good is of type int, not a function"),
    ],
)
def test_a_name_that_is_none(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"judge.function: .*{message}"):
        function_judge(name)


def test_the_import_path_is_left_as_it_was(tmp_path, monkeypatch):
    """Also where the folder of the command stands on it already, in front."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = list(sys.path)
    with importable():
        assert str(tmp_path) in sys.path
    assert sys.path == before
