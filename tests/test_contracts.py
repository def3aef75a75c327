"""The import contracts fail where they should: on a copy of the package with one import too many."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("raydpo", "tools"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_package_keeps_them(copy: Path) -> None:
    done = lint(copy)
    assert done.returncode == 0, done.stdout
    assert "pipelines are order and nothing else KEPT" in done.stdout


OUTSIDE = ("raydpo.models.lora", "raydpo.data", "torch", "json", "pathlib")


def test_pipelines_import_rooms_of_their_list_alone(copy: Path) -> None:
    with (copy / "raydpo/pipelines/offline.py").open("a") as file:
        file.write("".join(f"\nimport {module}\n" for module in OUTSIDE))
    done = lint(copy)
    assert done.returncode == 1, done.stdout
    assert "pipelines are order and nothing else BROKEN" in done.stdout
    for module in OUTSIDE:
        assert f"raydpo.pipelines.offline imports {module}" in done.stdout


@pytest.mark.parametrize("room", ["driver/judges.py", "models/resolve.py"])
def test_a_check_reaches_no_torch(copy: Path, room: str) -> None:
    with (copy / "raydpo" / room).open("a") as file:
        file.write("\nimport torch\n")
    done = lint(copy)
    assert done.returncode == 1, done.stdout
    assert "a check imports no torch BROKEN" in done.stdout
