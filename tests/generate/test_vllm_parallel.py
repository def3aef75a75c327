"""One policy over two devices, vLLM's tensor parallel processes on a CPU, against the transformers engine."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from raydpo.config.vllm_section import VllmSection
from raydpo.generate.engine import EngineSpec
from raydpo.generate.handed_weights import handed_over, in_file
from raydpo.generate.make_engine import make_engine
from tests.generate.conftest import PROMPTS
from tests.generate.test_vllm_engine import as_records, needs_vllm
from tests.generate.vllm_work import GREEDY, SEQUENCES


@pytest.mark.parametrize(
    ("section", "gpus", "parallel"),
    [
        ({}, 0, (1, 1)),
        ({}, 0.5, (1, 1)),
        ({}, 8, (8, 1)),
        ({"pipeline_parallel_size": 2}, 8, (4, 2)),
        ({"tensor_parallel_size": 2}, 0, (2, 1)),
    ],
)
def test_an_engine_goes_over_the_gpus_of_its_worker(
    section: dict[str, int], gpus: float, parallel: tuple[int, int]
) -> None:
    found = VllmSection.model_validate(section)
    assert found.parallel(gpus) == parallel
    assert list(found.misfits("generate", gpus)) == []


def test_weights_are_handed_over_in_a_file_that_is_gone_afterwards() -> None:
    weights = {"a": torch.arange(6.0).reshape(2, 3).t(), "b": torch.ones(2, dtype=torch.bfloat16)}
    with handed_over(weights) as path:
        found = dict(in_file(str(path)))
        assert path.is_file()
    assert not path.parent.exists()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


@pytest.mark.vllm
@pytest.mark.slow
@needs_vllm
def test_two_processes_hold_one_policy(old: Path, new: Path, tmp_path: Path) -> None:
    out, root = tmp_path / "found.json", Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.generate.vllm_parallel_work", str(old), str(new), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(out.read_text())
    for name, folder in (("old", old), ("new", new)):
        engine = make_engine(EngineSpec(str(folder)))
        assert found[name] == as_records(engine.generate(PROMPTS, GREEDY, seed=0))
        for ours, theirs in zip(found[f"{name}_nats"], engine.score(SEQUENCES)[0], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4)
    assert found["old"] != found["new"]
    assert found["left_in_memory"] == []
    assert len(found["children"]) >= 2
    _, alive = psutil.wait_procs(running(found["children"]), timeout=120)
    assert alive == []


def running(pids: list[int]) -> list[psutil.Process]:
    return [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
