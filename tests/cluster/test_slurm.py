"""The Slurm script by itself, with stand-ins for Slurm, Ray and the driver: who is asked to end, and what comes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "cluster" / "slurm.sh"
STAND_INS = {
    "srun": 'while [[ "$1" == --* ]]; do shift; done; exec "$@"',
    "scontrol": 'if [ "$1" = show ]; then echo one; else echo "scontrol $*"; fi',
    "hostname": "echo 10.0.0.7 10.0.0.8",
    "ray": 'echo "ray $*"; [ -n "${NO_RAY:-}" ] && exit 0; while [ "$1" != -- ]; do shift; done; shift; "$@"',
    # The driver: says what it was given, and saves when it is asked to end.
    "python": 'echo "driver $RAY_ADDRESS $*"; trap "echo saved; exit 143" TERM; touch "$OUT/begun"; '
    '[ -n "${LASTS:-}" ] || exit 0; for _ in $(seq 600); do sleep 0.1; done',
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    stand_ins = tmp_path / "bin"
    stand_ins.mkdir()
    (stand_ins / "activate").write_text("")
    for name, body in STAND_INS.items():
        (stand_ins / name).write_text(f"#!/bin/bash\n{body}\n")
        (stand_ins / name).chmod(0o755)
    slurm = {
        "SLURM_JOB_ID": "12345",
        "SLURM_JOB_NODELIST": "one",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "4",
    }
    path = os.pathsep.join([str(stand_ins), os.environ["PATH"]])
    return {
        **os.environ,
        **slurm,
        "PATH": path,
        "RAYDPO_VENV": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "OUT": str(tmp_path),
    }


def run(environment: dict[str, str], *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stdout


def test_the_driver_is_told_where_ray_is_and_what_to_run(environment: dict[str, str], tmp_path: Path) -> None:
    code, output = run(environment, "/shared/run.yaml", "train.epochs=2")
    assert code == 0, output
    assert "ray symmetric-run --address 10.0.0.7:22345 --min-nodes 2 --num-cpus 4 --disable-usage-stats -- " in output
    assert "driver 10.0.0.7:22345 -m raydpo train /shared/run.yaml train.epochs=2" in output
    assert "requeue" not in output
    assert not list(tmp_path.glob("raydpo-driver-*"))


def test_a_signal_asks_the_driver_and_the_job_goes_back_into_the_queue(
    environment: dict[str, str], tmp_path: Path
) -> None:
    job = subprocess.Popen(
        ["bash", str(SCRIPT), "/shared/run.yaml"],
        env=environment | {"LASTS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline_s = time.monotonic() + 60
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    output, _ = job.communicate(timeout=120)
    assert job.returncode == 143, output
    assert "saved\n" in output
    assert "scontrol requeue 12345" in output


def test_a_ray_that_did_not_start_is_no_success(environment: dict[str, str]) -> None:
    code, output = run(environment | {"NO_RAY": "1"}, "/shared/run.yaml")
    assert code == 1
    assert "Ray did not start on all nodes, so nothing was run" in output
