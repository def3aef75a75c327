"""The local runtime: what holds for actors of Ray holds for processes of this machine, and no Ray is there.

The tests of gang and pool that ask for nothing of Ray's own run here once more, on processes.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from raydpo.errors import Cause, HangError, ResourceError, WorkerError
from raydpo.runtime import Demand, run_gang, run_pool, session
from tests.runtime import rank_work, test_gang, test_pool
from tests.runtime.test_gang import LONG_S, start

OF_RAY = {
    "test_actors_that_reserve_nothing_run_beside_those_that_hold_all",
    "test_a_closed_pool_starts_no_actor",
    "test_places_that_no_node_has_any_more_are_a_loss_and_not_waited_for",
}
"""They ask Ray what is free."""
for _module in (test_gang, test_pool):
    globals().update({k: v for k, v in vars(_module).items() if k.startswith("test_") and k not in OF_RAY})

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("processes")]


@pytest.fixture(scope="module")
def processes() -> Iterator[None]:
    """Every role in processes of its own, even one of one worker."""
    with session(kind="local", local_cpus=8, in_process=False):
        yield


def test_a_rank_ahead_of_its_reader_waits(tmp_path: Path) -> None:
    stream = run_gang(
        "trainer",
        partial(rank_work.count_and_mark, folder=str(tmp_path), num_events=20),
        num_ranks=1,
        cpus=1,
        hang_timeout_s=LONG_S,
        max_unread=3,
    )
    assert next(stream) == (0, 0)
    deadline_s = time.monotonic() + 120
    while not (tmp_path / "made-3").exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    time.sleep(1.0)  # time enough for one that does not wait to run to its end
    made = len(list(tmp_path.glob("made-*")))
    assert 4 <= made <= 6, made
    assert [event for _, event in stream] == list(range(1, 20))


def test_what_an_actor_started_ends_with_it(tmp_path: Path) -> None:
    stream = start(partial(rank_work.start_a_child, folder=str(tmp_path)), 1)
    _, child = next(stream)
    assert psutil.pid_exists(child)
    stream.close()
    deadline_s = time.monotonic() + 120
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline_s, "a child outlives its actor"
        time.sleep(0.1)


def test_a_death_tells_the_signal_and_the_last_output() -> None:
    with pytest.raises(WorkerError, match=r"killed by SIGSEGV \(its last output: the last words\)"):
        list(run_pool("odd", rank_work.make_speaker, [signal.SIGSEGV], num_workers=1, cpus=1))
    with pytest.raises(WorkerError, match=r"with exit code 7") as caught:
        list(run_pool("odd", rank_work.make_speaker, [7], num_workers=1, cpus=1))
    assert caught.value.cause is Cause.EXITED


def test_more_than_the_machine_has_is_refused_before_any_work() -> None:
    with (
        pytest.raises(ResourceError, match="Missing: 3 CPUs"),
        session([Demand("train", 7, 1.0)], kind="local", local_cpus=4),
    ):
        pytest.fail("the session must not start work")


@pytest.mark.parametrize("variable", ["RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"])
def test_a_cluster_is_not_left_idle_in_silence(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "10.0.0.1:6379")
    with pytest.raises(ResourceError, match=r"run\.runtime: local works on this machine alone"), session(kind="local"):
        pytest.fail("the session must not start work")


def test_killing_the_driver_leaves_no_process_and_no_ray_is_there(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.runtime.local_driver", str(tmp_path), "wait", "local"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline_s = time.monotonic() + 300
        while len(list(tmp_path.glob("streamed-*"))) < 2:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline_s, "no rank started"
            time.sleep(0.1)
        family = psutil.Process(process.pid).children(recursive=True)
        assert {int((tmp_path / f"pid-{rank}").read_text()) for rank in range(2)} <= {child.pid for child in family}
        assert not [child for child in family if {"raylet", "gcs_server"} & {child.name()} or "ray::" in child.name()]
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(family, timeout=240)
        assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]


def test_the_runtime_itself_costs_no_heavy_import() -> None:
    code = (
        "import sys; from raydpo.runtime import run_pool, session\n"
        "from tests.runtime import rank_work\n"
        "with session(kind='local'): assert dict(run_pool('s', rank_work.make_squarer, [3], num_workers=1, cpus=1)) == {0: 9}\n"
        "sys.exit(bool({'ray', 'torch', 'transformers', 'pyarrow', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_hang_on_processes_names_no_frames_of_the_runtime() -> None:
    with pytest.raises(HangError) as caught:
        list(start(partial(rank_work.nap_on_rank, rank=1), 2, hang_timeout_s=15))
    assert "take_a_very_long_nap" in str(caught.value)
    assert "local_actor.py" not in str(caught.value)
    assert "fork_server.py" not in str(caught.value)
