"""A real Ray head for tests: own ports, temporary folder and token; only its own processes are ever stopped.

    with ray_head(num_cpus=4) as head:
        done = head.submit(working_dir, "python", "-m", "raydpo", "train", "run.yaml")
        assert done.returncode == 0, done.stdout

`ray stop` ends every Ray of the machine, so it is never used here. `ray start --block` ties the head's processes to
one process by the kernel; when that one ends, whatever is left of its recorded descendants is ended by pid.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import psutil

_RAY = [sys.executable, "-m", "ray.scripts.scripts"]
_START_TIMEOUT_S = 300.0
_START_ATTEMPTS = 4
TRY_AGAIN = ["sh", "-c", f'for _ in {" ".join("1" * _START_ATTEMPTS)}; do "$@" && exit; done', "sh"]
"""Put before a command that starts a node where nobody looks whether it did: Ray gives it 30 s, however busy the machine is."""
Options = Callable[[str], Sequence[str]]


@dataclass(frozen=True)
class RayHead:
    """A running head. `address` is the cluster's, `dashboard` the one jobs are submitted to, `agent_port` that of the
    process that starts them."""

    address: str
    dashboard: str
    agent_port: int
    token: str
    process: subprocess.Popen[str]
    output: Path

    def driver_environment(self) -> dict[str, str]:
        """Environment of a driver that is started by hand on this machine."""
        return _clean_environment(self.token) | {"RAY_ADDRESS": self.address}

    def join(self, num_cpus: int) -> tuple[subprocess.Popen[str], str]:
        """Join another node and wait until the open session has it: its process and its id.

        One that ends at its start, because Ray gives it 30 s and the machine is busy, is followed by another, for five
        minutes. Then it fails with what the nodes printed.
        """
        before, deadline_s, tries = living_nodes(), time.monotonic() + _START_TIMEOUT_S, 0
        while time.monotonic() < deadline_s:
            process, tries = self.add_node(num_cpus), tries + 1
            while process.poll() is None and time.monotonic() < deadline_s:
                if fresh := living_nodes() - before:
                    return process, fresh.pop()
                time.sleep(0.5)
            stop(process)
        raise AssertionError(
            f"{tries} nodes were started within {_START_TIMEOUT_S:.0f} s, and none joined {self.address}:\n{self.said()}"
        )

    def said(self) -> str:
        """The end of what the processes of the cluster printed."""
        return self.output.read_text(errors="replace")[-5000:]

    def submit(
        self, working_dir: Path, *command: str, options: Sequence[str] = (), timeout_s: float = 1200.0
    ) -> subprocess.CompletedProcess[str]:
        """`ray job submit --working-dir . -- command` from `working_dir`; waits, output holds the job's log."""
        return subprocess.run(
            [*_RAY, "job", "submit", "--working-dir", ".", *options, "--", *command],
            cwd=working_dir,
            env=_clean_environment(self.token) | {"RAY_API_SERVER_ADDRESS": self.dashboard},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def add_node(self, num_cpus: int, *, within: Sequence[str] = ()) -> subprocess.Popen[str]:
        """Join another node, which ends with the head. within: a command to start it in, such as `unshare -m`."""
        command = [*within, *_RAY, "start", "--address", self.address, "--num-cpus", str(num_cpus), "--block"]
        command += [*_options(_ports()), *_QUIET]
        with open(self.output, "a") as output:
            return subprocess.Popen(
                command,
                env=_clean_environment(self.token),
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                preexec_fn=_end_with_parent,
            )


_QUIET = ["--disable-usage-stats", "--object-store-memory", str(200 * 2**20), "--log-style", "record"]


@contextmanager
def ray_head(num_cpus: int, options: Options = lambda address: [], **environment: str) -> Iterator[RayHead]:
    """Start a head with `num_cpus` declared CPUs and `environment` for all its processes; stop it afterwards.

    options: more of `ray start`, from the address that the cluster will have.

    Ray gives a node 30 s to start, too little for a machine that is busy with something else: it gets several attempts.
    """
    for attempts_left in reversed(range(_START_ATTEMPTS)):
        with _started(num_cpus, options, environment) as head:
            try:
                _wait_until_ready(head)
            except RuntimeError as error:
                if attempts_left and "timed out during startup" in str(error):
                    continue
                raise
            yield head
            return


@contextmanager
def _started(num_cpus: int, options: Options, environment: Mapping[str, str]) -> Iterator[RayHead]:
    folder = Path(tempfile.mkdtemp(prefix="rayhead-", dir="/tmp"))  # short: sockets below it have 107 characters
    token = secrets.token_hex(24)
    ports = _ports("port", "dashboard-port", "ray-client-server-port")
    output = folder / "output.txt"
    command = [*_RAY, "start", "--head", "--block", "--dashboard-host", "127.0.0.1"]
    command += ["--num-cpus", str(num_cpus), "--temp-dir", str(folder), *_options(ports), *_QUIET]
    command += options(f"127.0.0.1:{ports['port']}")
    with open(output, "w") as file:
        process = subprocess.Popen(
            command,
            env=_clean_environment(token) | environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=_end_with_parent,
        )
    addresses = [f"127.0.0.1:{ports['port']}", f"http://127.0.0.1:{ports['dashboard-port']}"]
    try:
        yield RayHead(*addresses, ports["dashboard-agent-listen-port"], token, process, output)
    finally:
        stop(process)
        shutil.rmtree(folder, ignore_errors=True)


def living_nodes() -> set[str]:
    """Ids of the nodes of the open session that live and are not being taken away."""
    import ray
    from ray._private.state import state

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]} - set(state.get_draining_nodes())


def power_off(process: subprocess.Popen[str]) -> None:
    """End a node with all its processes at once, without a word to anybody."""
    with suppress(psutil.NoSuchProcess):
        for below in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                below.kill()
    process.kill()
    process.wait()


def stop(process: subprocess.Popen[str]) -> None:
    """End `process` and every descendant it has now, by pid."""
    family: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=60)
    process.kill()
    process.wait()
    _, left = psutil.wait_procs(family, timeout=5)
    for child in left:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(left, timeout=30)


def free_ports(number: int) -> list[int]:
    """Ports that are free now, below the range from which the kernel gives out ports by itself."""
    found: list[int] = []
    while len(found) < number:
        port = 20000 + secrets.randbelow(12000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found


def _ports(*more: str) -> dict[str, int]:
    """A free port for each that a node has, and for `more`; no two are the same."""
    names = ["dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port"]
    names += ["metrics-export-port", "node-manager-port", "object-manager-port", *more]
    return dict(zip(names, free_ports(len(names)), strict=True))


def _options(ports: Mapping[str, int]) -> list[str]:
    options = [text for name, port in ports.items() for text in (f"--{name}", str(port))]
    return [*options, "--min-worker-port", "0", "--max-worker-port", "0"]


def _clean_environment(token: str) -> dict[str, str]:
    """No RAY_ variable of anybody else; `python` on the PATH is the interpreter of the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    return kept | {"PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0"}


def _end_with_parent() -> None:
    # The tests may be killed; the head then goes with them instead of staying behind.
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _wait_until_ready(head: RayHead) -> None:
    request = urllib.request.Request(f"{head.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {head.token}"})
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while True:
        with (
            suppress(URLError, OSError),
            urllib.request.urlopen(request, timeout=10),
            socket.create_connection(("127.0.0.1", head.agent_port), timeout=10),
        ):
            return
        problem = "it ended" if head.process.poll() is not None else "it took too long"
        if problem == "it ended" or time.monotonic() > deadline_s:
            raise RuntimeError(f"the Ray head did not start ({problem}):\n{head.output.read_text()}")
        time.sleep(0.5)
