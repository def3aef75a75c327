"""The driver's side of fork servers: where they are started, and what is known of a process that one forked.

What comes in: what an actor is to be given. What goes out: a process to wait for and to end. Decision: a server is of one
environment, one working directory and one list of modules, so that whatever a module reads while it is imported is what
it would read in a fresh process; another one is started when any of them is another. The price is one small process for
each that is in use.
"""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any

from raydpo.errors import ResourceError
from raydpo.runtime.fork_request import ForkRequest
from raydpo.runtime.import_path import import_path

_SERVER_END_S = 5.0
"""How long a server that ended may take until its exit code is known."""
_NUM_TRIES = 2


class ForkServers:
    """Of one session, started when they are needed. folder: for their output and that of the actors."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._servers: list[_ForkServer] = []
        self._lock = threading.Lock()  # two roles may start actors at the same time

    def fork(self, kind: str, devices: str, log: Path, preload: Sequence[str]) -> tuple[ForkedProcess, Connection]:
        """An actor's process and the connection to it. Returns at once. Raises ResourceError when no server stays alive.

        preload: modules that its server has imported before; none where a fork after that is not safe.
        """
        modules = tuple(preload) if sys.platform == "linux" else ()
        key = ({**os.environ, "PYTHONPATH": os.pathsep.join(import_path())}, os.getcwd(), modules)
        with self._lock:
            self._drop_unused(key)
            for _ in range(_NUM_TRIES):
                if not (fitting := [server for server in self._servers if server.key == key]):
                    fitting = [_ForkServer(key, self._folder / f"server-{time.monotonic_ns()}.log")]
                    self._servers += fitting
                with suppress(OSError):
                    return fitting[0].fork(kind, devices, log)
                self._servers.remove(fitting[0])
                fitting[0].close()
        raise ResourceError(
            "The process from which actors are forked ended twice as soon as it was asked for one"
            f"{last_line(fitting[0].log)}. Without it no actor can start: look whether memory or processes run short."
        )

    def close(self) -> None:
        """End the servers. Actors that are still wanted stay."""
        with self._lock:
            while self._servers:
                self._servers.pop().close()

    def _drop_unused(self, key: Any) -> None:
        for server in list(self._servers):
            if server.has_ended() or (server.key != key and server.is_unused()):
                self._servers.remove(server)
                server.close()


class _ForkServer:
    def __init__(self, key: tuple[dict[str, str], str, tuple[str, ...]], log: Path) -> None:
        self.key, self.log = key, log
        self._forked: list[ForkedProcess] = []
        environment, folder, modules = key
        self._socket, theirs = socket.socketpair()
        with theirs, log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "raydpo.runtime.fork_server", str(theirs.fileno()), *modules],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=folder,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )

    def fork(self, kind: str, devices: str, log: Path) -> tuple[ForkedProcess, Connection]:
        """Raises OSError when it is dead."""
        with ExitStack() as stack:
            ours, theirs = socket.socketpair()
            until, life = os.pipe()
            status, told = os.pipe()
            request = ForkRequest(kind, devices, theirs.detach(), os.open(log, os.O_WRONLY | os.O_APPEND), until, told)
            stack.callback(request.close)
            process, connection = ForkedProcess(self, life, status), Connection(ours.detach())
            try:
                request.send(self._socket)
            except OSError:
                process.let_go()
                raise
        self._forked = [*(other for other in self._forked if other.is_wanted), process]
        return process, connection

    def exit_code(self) -> int | None:
        """None while it lives."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(_SERVER_END_S)
        return None

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def is_unused(self) -> bool:
        return not any(process.is_wanted for process in self._forked)

    def close(self) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()


class ForkedProcess:
    """A process that a server forks, or will. life: the pipe that keeps it; status: where its guard tells of it."""

    def __init__(self, server: _ForkServer, life: int, status: int) -> None:
        self._server, self._life, self._status = server, life, status
        self._told = b""
        self._is_over = False
        self._lock = threading.Lock()
        self.server_log: Path | None = None
        """Of the server, when that ended before there was a process."""

    @property
    def is_wanted(self) -> bool:
        return self._life >= 0

    def let_go(self) -> bool:
        """End it and what it started, at once. Whether this was the first time."""
        life, self._life = self._life, -1
        if life >= 0:
            os.close(life)
        return life >= 0

    def exit_code(self, timeout_s: float) -> int | None:
        """Of the process, negative for a signal; None when it runs after the time-out."""
        with self._lock:
            self._listen(2, timeout_s)
            told = self._told.split(b"\n")
            if len(told) > 2:
                return int(told[1])
            if not self._is_over:
                return None
            code = None
            if not self._told and self.is_wanted and (code := self._server.exit_code()) is not None:
                self.server_log = self._server.log
            return -9 if code is None else code

    def wait_for_end(self, timeout_s: float) -> None:
        """Return when it, and its guard, have ended, or after the time-out."""
        with self._lock:
            self._listen(math.inf, timeout_s)

    def _listen(self, num_lines: float, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not self._is_over and self._told.count(b"\n") < num_lines:
            if not wait_for([self._status], max(0.0, deadline_s - time.monotonic())):
                return
            text = os.read(self._status, 64)
            self._told += text
            if not text:
                self._is_over = True
                os.close(self._status)


def last_line(log: Path) -> str:
    """Of the output in `log`, as a clause in brackets; empty without output."""
    with suppress(OSError):
        lines = log.read_text(errors="replace").strip().splitlines()
        if lines:
            return f" (its last output: {lines[-1][:200]})"
    return ""
