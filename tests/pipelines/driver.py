"""A `raydpo` command in a process of its own, that a test watches and kills; and the processes that hang on it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE_S = 600.0
Process = tuple[int, str]
"""(pid, start time in clock ticks): a pid that is used again is another process."""


def start(*arguments: str, log: Path) -> subprocess.Popen[bytes]:
    """Start `python -m raydpo ...` with a session of its own. Output goes to `log`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "raydpo", *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=kept | {"RAYDPO_LOCAL_CPUS": "4"},
        )


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Return as soon as `condition` holds; fail with the log if the process ends before."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, f"the command ended by itself:\n{log.read_text()}"
        assert time.monotonic() < deadline, f"nothing happened:\n{log.read_text()}"
        time.sleep(0.01)


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    assert process.wait(PATIENCE_S) == -signal.SIGKILL, "it had ended before it could be killed"


def end(process: subprocess.Popen[bytes]) -> set[Process]:
    """Kill it, wait until all that hung on it has ended too, and say what that was. It stands still while that is found."""
    process.send_signal(signal.SIGSTOP)
    below = descendants(process.pid)
    kill(process)
    wait_for_end(below)
    return below


def descendants(pid: int) -> set[Process]:
    """Every process under `pid`."""
    children: dict[int, list[Process]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and (fields := _stat(int(folder.name))) is not None:
            children.setdefault(int(fields[1]), []).append((int(folder.name), fields[19]))
    found: set[Process] = set()
    parents = [pid]
    while parents:
        for child in children.get(parents.pop(), []):
            found.add(child)
            parents.append(child[0])
    return found


def by_age(kind: str) -> list[int]:
    """The processes under this one that are actors of `kind` (RankActor, PoolActor), on either runtime; the oldest first."""
    found = [(int(started), pid) for pid, started in descendants(os.getpid()) if is_actor(pid, kind)]
    assert found, f"no process of a {kind}"
    return [pid for _, pid in sorted(found)]


def is_actor(pid: int, kind: str) -> bool:
    """On Ray by its title; else by its name and that of its parent, because what an actor forks has its name too."""
    fields = _stat(pid)
    is_local = _name(pid) == kind and fields is not None and _name(int(fields[1])) == "guard"
    return is_local or title(pid).startswith(f"ray::{kind}")


def process_of(pid: int) -> Process:
    """A process that runs."""
    fields = _stat(pid)
    assert fields is not None, f"process {pid} is gone"
    return pid, fields[19]


def alive(processes: set[Process]) -> set[Process]:
    """Those that still run. A zombie does not."""
    return {
        (pid, started)
        for pid, started in processes
        if (fields := _stat(pid)) is not None and fields[19] == started and fields[0] != "Z"
    }


def wait_for_end(processes: set[Process]) -> None:
    """Fail with their command lines if some stay alive. The last agents of Ray end by themselves after about a minute."""
    deadline = time.monotonic() + PATIENCE_S
    while left := alive(processes):
        assert time.monotonic() < deadline, [title(pid) for pid, _ in left]
        time.sleep(0.2)


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat behind the command's name: state, parent, ..., start time at 19."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""
