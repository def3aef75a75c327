"""One driver a run directory, whoever holds it and however it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from raydpo.artifacts import RunLock
from raydpo.errors import RunInUseError

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys
from pathlib import Path
from raydpo.artifacts import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of `tmp_path`."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_driver_is_refused_and_told_who_holds_it(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with (
        pytest.raises(RunInUseError, match=rf"process {holder.pid} on {socket.gethostname()}") as refusal,
        RunLock(tmp_path),
    ):
        pass
    assert str(tmp_path) in str(refusal.value)
    assert refusal.value.exit_code == 2
    with pytest.raises(RunInUseError, match=str(holder.pid)), RunLock(tmp_path):
        pass  # the refused attempt has not overwritten the name


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_holder_holds_nothing(tmp_path: Path, holder: subprocess.Popen[str], sig: signal.Signals) -> None:
    os.kill(holder.pid, sig)
    holder.wait(timeout=60)
    with RunLock(tmp_path):
        assert str(os.getpid()) in (tmp_path / "lock").read_text()


def test_a_holder_that_is_done_holds_nothing(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.communicate("\n", timeout=60)
    assert holder.returncode == 0
    with RunLock(tmp_path):
        pass


def test_the_same_process_cannot_hold_it_twice(tmp_path: Path) -> None:
    with RunLock(tmp_path / "new" / "run"):
        with pytest.raises(RunInUseError, match=str(os.getpid())), RunLock(tmp_path / "new" / "run"):
            pass
        with RunLock(tmp_path / "another"):
            pass
    with RunLock(tmp_path / "new" / "run"):
        pass


def test_an_error_inside_lets_go(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunLock(tmp_path):
        _ = 1 / 0
    with RunLock(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "[]", "{", '{"pid": 3}', "\x00\xff"])
def test_a_holder_without_a_name_is_refused_all_the_same(
    tmp_path: Path, holder: subprocess.Popen[str], text: str
) -> None:
    (tmp_path / "lock").write_bytes(text.encode("latin-1"))
    with pytest.raises(RunInUseError, match="in use by another process"), RunLock(tmp_path):
        pass
