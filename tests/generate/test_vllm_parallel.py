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

from raydpo.config.vllm_section import VllmSection
from raydpo.generate.engine import EngineSpec
from raydpo.generate.make_engine import make_engine
from tests.generate.adapter_alone import merged_by_hand
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
    assert found["old"] == found["old_again"] != found["new"]
    adapted = make_engine(EngineSpec(str(old)))
    adapted.load_weights(merged_by_hand(old, 3))
    for ours, theirs in zip(found["adapted_nats"], adapted.score(SEQUENCES)[0], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4), "an adapter that came alone, in both processes"
    assert found["files_of_a_push"] == 1, "both processes map the file that the push wrote"
    assert found["left_in_memory"] == []
    assert len(found["children"]) >= 2
    _, alive = psutil.wait_procs(running(found["children"]), timeout=120)
    assert alive == []


def running(pids: list[int]) -> list[psutil.Process]:
    return [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
