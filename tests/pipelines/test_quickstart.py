"""The quickstart as a user runs it: one command, an aligned model, numbers that show it is better; then by rounds.

Both in one directory: the second command finds the supervised model of the first, which Ray's actors made.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("quickstart") / "run"


def quickstart(run_dir, *options):
    command = [sys.executable, "-m", "raydpo", "quickstart", "--run-dir", str(run_dir), "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.ray
def test_quickstart_raises_exact_match_by_at_least_25_points(run_dir):
    summary = quickstart(run_dir)
    assert summary["exact_match"]["after"] - summary["exact_match"]["before"] >= 0.25
    assert summary["eval"]["first"]["eval/loss"] == pytest.approx(0.693147, abs=1e-5)
    assert summary["eval"]["last"]["eval/rewards/margins"] > 0.1
    assert summary["data"]["lines_read"] == summary["data"]["pairs_used"] == 2250
    assert summary["reference"]["rows_scored"] == summary["reference"]["rows"] == 4500
    assert summary == json.loads((run_dir / "summary.json").read_text())
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "summary.json",
        "tensorboard",
        "checkpoints",
        "model/model.safetensors",
    ):
        assert (run_dir / "dpo" / name).exists(), name


@pytest.mark.slow
def test_rounds_end_above_offline_dpo_with_as_many_pairs(run_dir):
    """Rounds find what offline pairs of another model's mistakes do not hold."""
    summary = quickstart(run_dir, "--rounds", "--local")
    exact = summary["exact_match"]
    assert len(exact["rounds"]) == 3
    assert exact["rounds"][0] < exact["rounds"][2]
    assert exact["rounds"][2] - exact["offline_equal_pairs"] > 0.1
    offline = (run_dir / "task/offline_equal.jsonl").read_text().splitlines()
    assert len(offline) == summary["training_pairs"] > 800, "as many pairs on both sides, and all of them different"
    assert len(set(offline)) == len(offline)
