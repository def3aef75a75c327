"""The quickstart as a user runs it: one command, an aligned model, numbers that show it is better."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_quickstart_raises_exact_match_by_at_least_25_points(tmp_path):
    command = [sys.executable, "-m", "raydpo", "quickstart", "--run-dir", str(tmp_path / "run"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["exact_match"]["after"] - summary["exact_match"]["before"] >= 0.25
    assert summary["eval"]["first"]["eval/loss"] == pytest.approx(0.693147, abs=1e-5)
    assert summary["eval"]["last"]["eval/rewards/margins"] > 0.1
    assert summary["data"]["lines_read"] == summary["data"]["pairs_used"] == 2250
    assert summary["reference"]["rows_scored"] == summary["reference"]["rows"] == 4500
    assert summary == json.loads((tmp_path / "run/summary.json").read_text())
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "summary.json",
        "tensorboard",
        "checkpoints",
        "model/model.safetensors",
    ):
        assert (tmp_path / "run/dpo" / name).exists(), name
    assert "Traceback" not in done.stderr
