"""A real head on loopback, a real `ray job submit`: SUCCEEDED, the model is there. Stopped and resubmitted, it is the same."""

import json
import subprocess
import sys
import time
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
            "epochs": 40,
            "save_every": 5,
            "global_batch_pairs": 8,
            "learning_rate": 1e-3,
            "schedule": "outside_schedule:flat",
            "verify_export": False,
        },
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    (folder / "again.yaml").write_text(yaml.safe_dump({**config, "run": {"dir": str(shared / "again")}}))
    config["run"]["dir"] = "runs/first"
    config["reference"]["cache_dir"] = "cache"
    (folder / "relative.yaml").write_text(yaml.safe_dump(config))
    raydpo = f"{sys.executable} -m raydpo"
    (folder / "both.sh").write_text(
        f'{raydpo} train relative.yaml; echo "it ended with $?"; exec {raydpo} train run.yaml --json'
    )
    return folder, shared


@pytest.fixture(scope="module")
def head():
    with ray_head(num_cpus=4) as running:
        yield running


def test_a_submitted_job_trains_and_a_relative_run_dir_is_refused(working_dir, head):
    """One job, whose script gives both commands."""
    folder, shared = working_dir
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


def test_a_job_that_is_stopped_and_submitted_again_ends_where_the_undisturbed_one_does(working_dir, head):
    """The first test's run is the undisturbed one."""
    folder, shared = working_dir
    command = [sys.executable, "-m", "raydpo", "train", "again.yaml"]
    waits = ["--runtime-env-json", '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "300"}}']
    begun = head.submit(folder, *command, options=["--no-wait", "--submission-id", "first", *waits])
    assert begun.returncode == 0, begun.stdout
    deadline_s = time.monotonic() + 600
    while num_steps(shared / "again") < 8:
        assert time.monotonic() < deadline_s, jobs(head, "logs", "first")
        time.sleep(0.05)
    jobs(head, "stop", "first")
    log = jobs(head, "logs", "first")
    assert "asked to stop: saving at the next step boundary" in log, log
    assert "was stopped" in jobs(head, "status", "first")
    done = num_steps(shared / "again")
    assert 8 <= done < num_steps(shared / "run")

    again = head.submit(folder, *command)
    print(again.stdout)
    assert again.returncode == 0, again.stdout
    assert "succeeded" in again.stdout.lower()
    assert 8 <= json.loads((shared / "again/summary.json").read_text())["train"]["resumed_from_step"] <= done
    name = "model/model.safetensors"
    assert (shared / "again" / name).read_bytes() == (shared / "run" / name).read_bytes()


def num_steps(run):
    """Steps that a run has logged."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return max((json.loads(line)["step"] for line in lines if "learning_rate" in line), default=0)


def jobs(head, *arguments):
    """What `ray job ...` says."""
    environment = head.driver_environment() | {"RAY_API_SERVER_ADDRESS": head.dashboard}
    return subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "job", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
        timeout=600,
    ).stdout
