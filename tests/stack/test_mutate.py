"""The mutation runner, on a small project of its own whose mutants have a known end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.mutate.mutants import Mutant, mutants_of
from tools.mutate.sample import sample

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

SOURCE = '''\
"""A text with 7 in it."""

LIMIT = 5
__all__ = ["double"]


def double(x: int, *, more: int = 0) -> int:
    if x > LIMIT:
        raise ValueError(f"{x} is more than {LIMIT + 0}")
    return 2 * x + more


def unseen(x: int) -> int:
    return x - 1


def turns(x: int) -> int:
    num = 0
    while num < x:
        num += 1
    return num


def elsewhere() -> int:
    return 3
'''

TESTS = """\
import subprocess
import sys

import pytest

from small import things


def test_double():
    assert things.double(3) == 6
    assert things.double(1, more=2) == 4
    with pytest.raises(ValueError):
        things.double(7)


def test_turns():
    assert things.turns(4) == 4


def test_in_another_process():
    code = "from small.things import elsewhere; raise SystemExit(elsewhere())"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 3
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Mutated line -> what became of it, of all mutants of SOURCE."""
    project = tmp_path_factory.mktemp("project")
    for folder, name, text in (("small", "things.py", SOURCE), ("tests", "test_things.py", TESTS)):
        (project / folder).mkdir()
        (project / folder / "__init__.py").touch()
        (project / folder / name).write_text(text)
    command = [sys.executable, "-m", "tools.mutate", "--num", "1000", "--packages", "small", "--tests", "tests"]
    command += ["--preload", "pytest", "hypothesis", "--out", "mutation.json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (project / "small" / "things.py").read_text() == SOURCE
    entries = json.loads((project / "mutation.json").read_text())["mutants"]
    page = (project / "mutation.md").read_text()
    assert page.count("```diff") == sum(entry["status"] != "killed" for entry in entries)
    return {f"{entry['line']}: {entry['mutated']}": entry for entry in entries}


@pytest.mark.parametrize(
    "change",
    [
        "10: return (2 / x) + more",
        "10: return (2 * x - more)",
        "10: return 3 * x + more",
        "10: return None",
        "21: return None",
    ],
)
def test_what_a_test_notices_is_killed(ended: dict[str, dict[str, Any]], change: str) -> None:
    assert ended[change]["status"] == "killed"
    assert ended[change]["by"] == f"tests/test_things.py::test_{'double' if change.startswith('10') else 'turns'}"


def test_what_no_test_notices_survives(ended: dict[str, dict[str, Any]]) -> None:
    assert ended["8: if (x >= LIMIT):"]["status"] == "survived", "no test tries 5"
    assert ended["8: if (x >= LIMIT):"]["is_executed"] is True
    assert ended["14: return (x + 1)"]["status"] == "survived"
    assert ended["14: return (x + 1)"]["is_executed"] is False


def test_a_constant_of_the_module_meets_all_tests_of_it(ended: dict[str, dict[str, Any]]) -> None:
    assert ended["3: LIMIT = 6"]["status"] == "survived", "no test tries 6"
    assert ended["3: LIMIT = 6"]["num_tests"] == 3


def test_a_mutant_is_there_in_processes_of_tests_too(ended: dict[str, dict[str, Any]]) -> None:
    assert ended["25: return 4"]["status"] == "killed"
    assert ended["25: return 4"]["by"] == "tests/test_things.py::test_in_another_process"


def test_an_endless_loop_is_a_timeout_and_no_kill(ended: dict[str, dict[str, Any]]) -> None:
    assert ended["20: num -= 1"]["status"] == "timeout"


def test_texts_types_and_messages_are_not_changed(ended: dict[str, dict[str, Any]]) -> None:
    lines = {entry["line"] for entry in ended.values()}
    texts = {number for number, line in enumerate(SOURCE.splitlines(), 1) if '"' in line}
    assert not lines & texts


def test_a_sample_is_spread_by_lines(tmp_path: Path) -> None:
    (tmp_path / "dense.py").write_text("x = 1 + 2 + 3 + 4 + 5 + 6\n" * 2)
    (tmp_path / "long.py").write_text("x = 1\n" * 8)
    found = {name: mutants_of(Path(name), tmp_path) for name in ("dense.py", "long.py")}
    chosen = sample(found, {"dense.py": 2, "long.py": 8}, 10, seed=0)
    assert [mutant.path for mutant in chosen].count("dense.py") == 2
    assert len({(mutant.path, mutant.line) for mutant in chosen}) == 10, "a second one before every line has one"
    assert chosen == sample(found, {"dense.py": 2, "long.py": 8}, 10, seed=0)
    assert chosen != sample(found, {"dense.py": 2, "long.py": 8}, 10, seed=1)


def test_a_change_touches_its_span_alone(tmp_path: Path) -> None:
    source = "def f(ü, y):\n    return ü  -  y  # größer\n"
    (tmp_path / "one.py").write_text(source)
    changed = {mutant.apply(source.encode()).decode() for mutant in mutants_of(Path("one.py"), tmp_path)}
    assert changed == {
        "def f(ü, y):\n    return (ü + y)  # größer\n",
        "def f(ü, y):\n    return None  # größer\n",
    }


def test_a_module_is_named_by_its_path() -> None:
    assert Mutant("raydpo/batches/__init__.py", 1, "", 0, 0, "").module == "raydpo.batches"
