"""A session on one machine opens no port to others, and leaves no folder of Ray's behind."""

from __future__ import annotations

import ipaddress
import logging
import os
from functools import partial
from pathlib import Path

import psutil
import pytest

from raydpo.errors import ResourceError, WorkerError
from raydpo.runtime import run_gang, session
from raydpo.runtime.backend import Kind
from raydpo.runtime.ray_folders import leave_logs
from tests.pipelines.driver import descendants
from tests.runtime import rank_torch


def listeners() -> dict[str, str]:
    """Address -> command line, of every socket that this process or one below it listens on."""
    found = {}
    for pid in [os.getpid(), *(pid for pid, _ in descendants(os.getpid()))]:
        try:
            process = psutil.Process(pid)
            command = " ".join(process.cmdline())[-200:]
            for socket in process.net_connections("inet"):
                if socket.status == psutil.CONN_LISTEN:
                    found[f"{socket.laddr.ip.removeprefix('::ffff:')}:{socket.laddr.port}"] = command
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.parametrize("kind", ["local", pytest.param("ray", marks=pytest.mark.ray)])
def test_every_listener_of_a_session_with_two_ranks_is_on_loopback(kind: Kind, tmp_path: Path) -> None:
    folder = None
    with session(kind=kind, in_process=False, local_cpus=4):
        if kind == "ray":
            import ray

            folder = Path(ray._private.worker._global_node.get_session_dir_path())
            assert folder.is_dir()
        ranks = run_gang(
            "trainer",
            partial(rank_torch.meet_and_wait, folder=str(tmp_path)),
            num_ranks=2,
            cpus=1,
            hang_timeout_s=600.0,
        )
        assert {next(ranks)[0], next(ranks)[0]} == {0, 1}
        found = listeners()
        (tmp_path / "go").touch()
        assert list(ranks) == []
    assert len(found) >= 3, f"the store and a socket of each rank: {found}"
    outside = {
        address: command
        for address, command in found.items()
        if not ipaddress.ip_address(address.rpartition(":")[0]).is_loopback
    }
    assert outside == {}
    assert folder is None or not folder.exists()


@pytest.mark.parametrize(
    ("kind", "kept"),
    [(None, False), (ResourceError, False), (KeyboardInterrupt, False), (WorkerError, True), (RuntimeError, True)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_the_folder_of_a_session_stays_where_its_logs_may_explain_something(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: type[BaseException] | None, kept: bool
) -> None:
    folder, other = tmp_path / "session_1", tmp_path / "session_2"
    for each in (folder, other):
        (each / "logs").mkdir(parents=True)
    latest = tmp_path / "session_latest"
    latest.symlink_to(folder)
    with caplog.at_level(logging.WARNING):
        leave_logs(folder, kind)
    assert folder.exists() == latest.is_symlink() == kept
    assert (str(folder / "logs") in caplog.text) == kept
    assert other.is_dir()
