"""Hosts of a network of their own on this machine, each with a Ray node: what a cluster looks like from inside.

    with network(folder, "a", "b") as (a, b), ray_node(a, a, 1, token, folder), ray_node(b, a, 1, token, folder):
        subprocess.run([*a.within(), ...], env=driver_environment(a, token))

Goes out: hosts with one outer address each (10.231.7.x), a host name that resolves to loopback, as Debian installs it, and
ports of their own. Decision: namespaces have no names but belong to processes that end with this one, so the kernel takes them
and their links away however a test ends.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.runtime.ray_head import _QUIET, _RAY, TRY_AGAIN, _clean_environment, _end_with_parent, stop

_UNSHARE = ["unshare", "--net", "--mount", "--uts"]
_LIVE = 'hostname "$0" && mount --bind "$1" /etc/hosts && ip link set lo up && echo ready && exec sleep infinity'
_TRY = "hostname x && ip link add name x0 type bridge && ip link add name x1 type veth peer name x2"
_PORT = 6379
_ROOT = str(Path(__file__).resolve().parents[2])


@dataclass(frozen=True)
class Host:
    """A host. holder: process whose namespaces are its own."""

    name: str
    address: str
    holder: int

    def within(self) -> list[str]:
        """Prefix of a command that runs there. Its working directory is /."""
        return ["nsenter", "--target", str(self.holder), "--net", "--mount", "--uts", "--"]

    def run(self, *command: str) -> None:
        subprocess.run([*self.within(), *command], check=True, capture_output=True, timeout=60)

    def owns(self, pid: int) -> bool:
        """Whether a process is of this host."""
        try:
            return os.readlink(f"/proc/{pid}/ns/net") == os.readlink(f"/proc/{self.holder}/ns/net")
        except OSError:
            return False


def why_not() -> str:
    """Why this machine has no such network, or an empty text."""
    missing = [tool for tool in ("unshare", "nsenter", "ip", "hostname") if shutil.which(tool) is None]
    if missing:
        return f"there is no {', '.join(missing)} here, which makes hosts of one machine"
    made = subprocess.run(
        [*_UNSHARE, "sh", "-c", _TRY],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return f"this machine lets nobody make a network: {made.stderr.strip()}" if made.returncode else ""


@contextmanager
def network(folder: Path, *names: str) -> Iterator[list[Host]]:
    """Hosts that see each other through one switch. folder: for their files."""
    with ExitStack() as stack:
        switch = _host(stack, folder, "switch", "")
        switch.run("ip", "link", "add", "name", "bridge", "type", "bridge")
        switch.run("ip", "link", "set", "bridge", "up")
        hosts = [_host(stack, folder, name, f"10.231.7.{1 + number}") for number, name in enumerate(names)]
        for host in hosts:
            link = f"to-{host.name}"
            switch.run(
                "ip", "link", "add", "name", link, "type", "veth", "peer", "name", "outer0", "netns", str(host.holder)
            )
            switch.run("ip", "link", "set", link, "master", "bridge", "up")
            host.run("ip", "address", "add", f"{host.address}/24", "dev", "outer0")
            host.run("ip", "link", "set", "outer0", "up")
        yield hosts


def _host(stack: ExitStack, folder: Path, name: str, address: str) -> Host:
    (folder / f"hosts-{name}").write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n")
    holder = subprocess.Popen(
        [*_UNSHARE, "sh", "-c", _LIVE, name, str(folder / f"hosts-{name}")],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=_end_with_parent,
    )
    stack.callback(stop, holder)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n", name
    return Host(name, address, holder.pid)


@contextmanager
def ray_node(host: Host, head: Host, num_cpus: int, token: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A Ray node on `host`, of the cluster whose head is on `head`, with a label `host` and a resource `disk`. Ends with the
    block, or with this process."""
    where = ["--head", "--port", str(_PORT), "--include-dashboard", "false", "--temp-dir", str(folder / "r")]
    if host is not head:
        where = ["--address", address_of(head)]
    place = ["--node-ip-address", host.address, "--labels", f"host={host.name}", "--resources", '{"disk": 1}']
    with open(folder / f"ray-{host.name}.txt", "w") as output:
        process = subprocess.Popen(
            [
                *host.within(),
                *TRY_AGAIN,
                *_RAY,
                "start",
                *where,
                *place,
                "--num-cpus",
                str(num_cpus),
                "--block",
                *_QUIET,
            ],
            env=_clean_environment(token) | {"PYTHONPATH": _ROOT},
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=_end_with_parent,
        )
    try:
        yield process
    finally:
        stop(process)


def address_of(head: Host) -> str:
    return f"{head.address}:{_PORT}"


def driver_environment(head: Host, token: str) -> dict[str, str]:
    """Environment of a driver on a host of the cluster."""
    return _clean_environment(token) | {"RAY_ADDRESS": address_of(head), "PYTHONPATH": _ROOT}


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 300.0) -> None:
    """Return once `condition()` holds; fail after the time-out."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"{what}: not within {timeout_s:.0f} s"
        time.sleep(0.2)


def spread_in(lines: list[str]) -> list[str]:
    """The lines that say which rank is on which of two nodes. Which of them is the first, Ray decides."""
    start = "train: ranks 2 on 2 nodes: "
    either = {start + "0 on 10.231.7.1, 1 on 10.231.7.2", start + "0 on 10.231.7.2, 1 on 10.231.7.1"}
    return [line for line in lines if line in either]
