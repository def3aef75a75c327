"""One forked process that runs pytest, with limits: the same for measuring and for every mutant.

Comes in: a function to run. Goes out: what it returned, or that it was over its limits, or died.
Decision: the limit that counts is CPU time, which a busy machine does not use up; a longer one of wall-clock time ends
what waits forever. The child leads a process group, so that what a test started ends with it.
"""

from __future__ import annotations

import os
import pickle
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

MORE_MEMORY_BYTES = 8 * 2**30
"""What a child may map in addition to what was there when it was forked."""

Ending = Literal["returned", "timeout", "died"]


@dataclass
class Child:
    """A running child. deadline: of time.monotonic."""

    pid: int
    folder: Path
    started: float
    deadline: float

    def ended(self) -> tuple[Ending, Any] | None:
        """How it ended and what it returned; None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        is_late = not pid and time.monotonic() > self.deadline
        if not pid and not is_late:
            return None
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if is_late:
            os.waitpid(self.pid, 0)
            return "timeout", None
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGPROF):
            return "timeout", None
        file = self.folder / "returned"
        return ("returned", pickle.loads(file.read_bytes())) if file.exists() else ("died", None)


def start(run: Callable[[], Any], folder: Path, cpu_s: float, wall_s: float) -> Child:
    """Fork; the child calls `run`, with its output in `folder`/output."""
    sys.stdout.flush()
    sys.stderr.flush()
    now = time.monotonic()
    pid = os.fork()
    if pid:
        with suppress(OSError):  # the child does it, too: whoever is first
            os.setpgid(pid, pid)
        return Child(pid, folder, now, now + wall_s)
    try:
        with suppress(OSError):
            os.setpgid(0, 0)
        _limit(cpu_s)
        output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        returned = pickle.dumps(run())
        (folder / "returning").write_bytes(returned)
        os.replace(folder / "returning", folder / "returned")
    except BaseException:  # noqa: BLE001 - whatever it is, the parent reads that nothing was returned
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(0)


def _limit(cpu_s: float) -> None:
    seconds = int(cpu_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MORE_MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
