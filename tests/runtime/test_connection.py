"""Sessions: demands, tokens, import paths, and what is left when the driver is killed."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest

from raydpo.errors import Cause, ResourceError, WorkerError
from raydpo.runtime import Demand, run_gang, session
from tests.runtime import rank_work
from tests.runtime.ray_head import free_ports
from tests.runtime.single import run_single

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
AGENTS = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
"""They end a minute later by themselves, when they give up reporting to the cluster that is no more. Not waited for."""


def _driver(folder: Path, what: str, **environment: str) -> subprocess.Popen[str]:
    """A driver with an empty home folder, started elsewhere than in the source tree."""
    home = folder / "home"
    home.mkdir()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-c", _START, str(ROOT), str(folder), what],
        cwd=folder,
        env=inherited | {"HOME": str(home)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


_START = """
import sys
root, folder, what = sys.argv[1:]
sys.path.insert(0, root)
from tests.runtime.local_driver import main
main(folder, what)
"""


def _wait_for(condition: object, text: str) -> None:
    assert callable(condition)
    deadline_s = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline_s, text
        time.sleep(0.2)


def _living(processes: list[psutil.Process]) -> list[psutil.Process]:
    living = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # it may end between the two questions
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                living.append(process)
    return living


def _name(process: psutil.Process) -> str:
    """Empty for one that has ended: Ray starts some that do little and end at once."""
    with suppress(psutil.NoSuchProcess):
        return process.name()
    return ""


def test_a_local_session_is_quiet_and_leaves_the_home_folder_alone(tmp_path: Path) -> None:
    process = _driver(tmp_path, "done")
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert output == "42\n"
    assert errors == ""
    assert list((tmp_path / "home").rglob("*auth*")) == []


def test_a_token_of_another_cluster_in_the_home_folder_does_no_harm(tmp_path: Path) -> None:
    process = _driver(tmp_path, "done", RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
    (tmp_path / "token").write_text("0123456789abcdef0123456789abcdef")
    output, errors = process.communicate(timeout=300)
    assert (process.returncode, output) == (0, "42\n"), errors


def test_killing_the_driver_leaves_no_process(tmp_path: Path) -> None:
    process = _driver(tmp_path, "wait")
    agents: list[psutil.Process] = []
    try:
        _wait_for(lambda: len(list(tmp_path.glob("streamed-*"))) == 2 or process.poll() is not None, "no rank started")
        assert process.poll() is None, process.communicate()[1]
        family = psutil.Process(process.pid).children(recursive=True)
        names = {_name(child) for child in family}
        assert {"raylet", "gcs_server"} <= names
        ranks = {int((tmp_path / f"pid-{rank}").read_text()) for rank in range(2)}
        assert ranks <= {child.pid for child in family}
        agents = [child for child in family if _name(child) in AGENTS]
        process.send_signal(signal.SIGKILL)
        process.wait()
        others = [child for child in family if child not in agents]
        _wait_for(lambda: not _living(others), f"still there: {others}")
    finally:
        for agent in _living(agents):
            with suppress(psutil.NoSuchProcess):
                agent.kill()
        process.kill()
        process.communicate()


def test_the_environment_and_the_signal_handler_come_back() -> None:
    importlib.import_module("ray")  # which sets a variable of its own
    before, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    with session(local_cpus=1):
        assert run_single("sum", rank_work.add, 1, 2) == 3
    assert dict(os.environ) == before
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_raylet_that_dies_is_named_and_not_the_driver_or_the_rank(tmp_path: Path) -> None:
    function = partial(rank_work.tell_pid_and_wait, folder=str(tmp_path))
    with session(local_cpus=1):
        stream = run_gang("trainer", function, num_ranks=1, cpus=1, hang_timeout_s=600)
        next(stream)
        (raylet,) = [child for child in psutil.Process().children(recursive=True) if child.name() == "raylet"]
        raylet.kill()
        with pytest.raises(WorkerError) as caught:
            next(stream)
    assert (caught.value.cause, caught.value.rank) == (Cause.OWNER_DIED, 0)
    assert "the raylet of the driver's own node is gone" in str(caught.value)
    assert not caught.value.cause.is_loss, "nothing can be started from here any more"


def test_an_impossible_demand_is_refused_at_once_with_every_number() -> None:
    demands = [Demand("reference", 2, 1.0), Demand("train", 3, 2.0, 1.0)]
    with pytest.raises(ResourceError) as caught, session(demands, local_cpus=4):
        pytest.fail("the session must not start work")
    (problem,) = caught.value.problems
    assert problem.startswith("train: 3 workers with 2 CPUs and 1 GPUs each were asked for, 6 CPUs and 3 GPUs in all.")
    assert "There: 4 CPUs and 0 GPUs on this machine" in problem
    assert "Missing: 2 CPUs and 3 GPUs" in problem


def test_a_session_inside_a_session_uses_the_outer_one_and_checks_its_own_demands() -> None:
    with session(local_cpus=2):
        with session([Demand("train", 2, 1.0)]):
            assert run_single("sum", rank_work.add, 1, 2) == 3
        assert run_single("sum", rank_work.add, 3, 4) == 7, "the outer session is still there"
        with pytest.raises(ResourceError), session([Demand("train", 3, 1.0)]):
            pass


@pytest.mark.parametrize(
    ("address", "reason"), [("ray://127.0.0.1:10001", "ray job submit"), ("{free}", "nothing listens")]
)
def test_an_address_without_a_cluster_is_a_user_error(
    monkeypatch: pytest.MonkeyPatch, address: str, reason: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address.replace("{free}", f"127.0.0.1:{free_ports(1)[0]}"))
    with pytest.raises(ResourceError, match=reason), session():
        pass
