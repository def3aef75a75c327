"""A real head on loopback, a real `ray job submit`: SUCCEEDED, and the model is there."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from raydpo.models.pretrained import load_model
from raydpo.quickstart.bpe import train_bpe
from raydpo.quickstart.fresh_model import create_model
from tests.runtime.ray_head import ray_head

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
PAIRS = [(f"Count to {n}:", " " + " ".join(map(str, range(1, n + 1))), f" {n} {n}") for n in range(2, 26)]


@pytest.fixture(scope="module")
def working_dir(tmp_path_factory):
    """What a user would submit: the package, a schedule of their own, a config and pairs. Outputs and the model lie outside, on
    'shared' storage."""
    folder, shared = tmp_path_factory.mktemp("job"), tmp_path_factory.mktemp("shared")
    (folder / "raydpo").symlink_to(ROOT / "raydpo")
    (folder / "outside_schedule.py").write_text("def flat(step, num_steps):\n    return 0.5\n")
    lines = [json.dumps({"prompt": p, "chosen": c, "rejected": r}) + "\n" for p, c, r in PAIRS]
    (folder / "pairs.jsonl").write_text("".join(lines))
    tokenizer = train_bpe([p + c for p, c, _ in PAIRS], 300)
    shape = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "intermediate_size": 64, "max_positions": 128}
    create_model(shared / "sft", tokenizer, seed=0, **shape)
    config = {
        "run": {"dir": str(shared / "run")},
        "model": {"path": str(shared / "sft")},
        "data": {"train": "pairs.jsonl", "eval_fraction": 0.2},
        "reference": {"cache_dir": str(shared / "cache"), "num_workers": 2},
        "train": {
            "num_workers": 2,
            "global_batch_pairs": 8,
            "learning_rate": 1e-3,
            "schedule": "outside_schedule:flat",
            "verify_export": False,
        },
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    config["run"]["dir"] = "runs/first"
    config["reference"]["cache_dir"] = "cache"
    (folder / "relative.yaml").write_text(yaml.safe_dump(config))
    raydpo = f"{sys.executable} -m raydpo"
    (folder / "both.sh").write_text(
        f'{raydpo} train relative.yaml; echo "it ended with $?"; exec {raydpo} train run.yaml --json'
    )
    return folder, shared


def test_a_submitted_job_trains_and_a_relative_run_dir_is_refused(working_dir):
    """One job, whose script gives both commands."""
    folder, shared = working_dir
    with ray_head(num_cpus=4) as head:
        done = head.submit(folder, "sh", "both.sh")
    assert done.returncode == 0, done.stdout
    refused, ended, trained = done.stdout.partition("it ended with 2")
    assert ended, done.stdout
    assert "run.dir" in refused
    assert "reference.cache_dir" in refused
    assert "Traceback" not in refused.split("Tailing logs")[-1]
    assert "succeeded" in trained.lower()
    summary = json.loads((shared / "run/summary.json").read_text())
    assert summary["train"]["steps"] >= 2
    metrics = [json.loads(line) for line in (shared / "run/metrics.jsonl").read_text().splitlines()]
    assert [line for line in metrics if "learning_rate" in line][-1]["learning_rate"] == 0.5e-3, "the module travelled"
    assert summary["reference"]["rows_scored"] == summary["reference"]["rows"] == 2 * len(PAIRS)
    assert load_model(shared / "run/model", "float32", "sdpa").num_parameters() > 0
