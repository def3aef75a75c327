"""Two real nodes, one of which comes late and has another disk at the same path."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.ray_head import TRY_AGAIN, RayHead, ray_head, stop

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]

_MOUNT = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"']


def _can_mount(folder: Path) -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*_MOUNT, str(folder), "true"], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with ray_head(2, PYTHONPATH=str(ROOT)) as running:
        yield running


def _drive(head: RayHead, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.runtime.cluster_driver", *arguments],
        cwd=ROOT,
        env=head.driver_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _until(line: str, process: subprocess.Popen[str]) -> None:
    """Read what it prints up to `line`."""
    assert process.stdout is not None
    said = list(iter(process.stdout.readline, line))
    assert process.poll() is None, said


def test_a_submitted_job_runs_code_of_its_working_directory(head: RayHead, tmp_path: Path) -> None:
    (tmp_path / "carried").mkdir()
    (tmp_path / "carried" / "__init__.py").write_text("")
    (tmp_path / "carried" / "work.py").write_text("def make():\n    return lambda number: 3 * number\n")
    (tmp_path / "main.py").write_text(_JOB)
    done = head.submit(tmp_path, "python", "main.py")
    assert done.returncode == 0, done.stdout
    assert "in a job: True" in done.stdout
    assert "refused: run.dir: 'runs/first' is relative" in done.stdout
    assert "result: 126" in done.stdout


_JOB = """
from carried.work import make
from raydpo.errors import ConfigError
from raydpo.runtime import Demand, check_paths, in_ray_job, run_pool, session

print("in a job:", in_ray_job())
try:
    check_paths({"run.dir": "runs/first", "reference.cache_dir": "/mnt/shared/cache"})
except ConfigError as error:
    print("refused:", error)
with session([Demand("train", 2, 1.0)]):
    print("result:", dict(run_pool("triple", make, [42], num_workers=1, cpus=1.0))[0])
"""


def test_a_wrong_token_is_a_user_error(head: RayHead) -> None:
    environment = head.driver_environment() | {"RAY_AUTH_TOKEN": "0" * 48}
    done = subprocess.run(
        [sys.executable, "-c", "from raydpo.runtime import session\nwith session():\n    pass"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert "raydpo.errors.ResourceError: RAY_ADDRESS is" in done.stderr
    assert "wants a token that this process does not have" in done.stderr


def test_a_second_node_is_used_and_must_see_the_storage(head: RayHead, tmp_path: Path) -> None:
    shared, private = tmp_path / "shared", tmp_path / "private"
    shared.mkdir()
    private.mkdir()
    mounts = _can_mount(private)
    with _drive(head, "2", str(private) if mounts else "-", str(shared), str(private)) as driver:
        if mounts:
            _until("ready\n", driver)
        node = head.add_node(2, within=[*([*_MOUNT, str(private)] if mounts else []), *TRY_AGAIN])
        try:
            output, _ = driver.communicate(timeout=600)
        finally:
            driver.kill()
            stop(node)
    assert driver.returncode == 0, output
    assert f"shared {shared}" in output
    assert f"left {shared} []" in output, "the probe files are gone"
    assert "refused train: 2 workers with 3 CPUs each" in output, "4 CPUs on two nodes hold no 3 on one"
    assert "ranks [(0, 0, 2), (1, 1, 2), (2, 0, 2), (3, 1, 2)]" in output
    (line,) = [line for line in output.splitlines() if line.startswith("scraped ray_raydpo_loss{")]
    assert 'run="/shared/first"' in line
    assert 'role="train"' in line
    assert line.endswith(" 0.625")
    if not mounts:
        pytest.skip("this machine lets nobody mount a file system of his own: a node with another disk was not tried")
    assert "not shared 1 " in output
    problem = f"({socket.gethostname()}) does not share it: a file that the driver wrote there is not seen"
    assert problem in output
    (warned,) = [line for line in output.splitlines() if line.startswith("warned ")]
    assert warned.startswith(f"warned late: that node gets no work. {private}: node ")
    assert problem in warned
    assert f"at work {[(item, ['go', 'seen']) for item in range(6)]}" in output, "on the first node alone"
    refused = [line for line in output.splitlines() if line.startswith("refused by name ")]
    assert len(refused) == 2, "a pool and a gang that may go nowhere else"
    assert all(problem in line for line in refused)
    assert "it worked" not in output
