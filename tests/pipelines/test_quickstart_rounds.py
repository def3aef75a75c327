"""`raydpo quickstart --rounds` as a user runs it: rounds find what offline pairs of another model's mistakes do not hold."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_rounds_end_above_offline_dpo_with_as_many_pairs(tmp_path):
    command = [sys.executable, "-m", "raydpo", "quickstart", "--rounds", "--run-dir", str(tmp_path / "run"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    exact = summary["exact_match"]
    assert len(exact["rounds"]) == 3
    assert exact["rounds"][0] < exact["rounds"][2]
    assert exact["rounds"][2] - exact["offline_equal_pairs"] > 0.1
    offline = (tmp_path / "run/task/offline_equal.jsonl").read_text().splitlines()
    assert len(offline) == summary["training_pairs"] > 800, "as many pairs on both sides, and all of them different"
    assert len(set(offline)) == len(offline)
    assert "Traceback" not in done.stderr
