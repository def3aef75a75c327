"""A session with a runtime for the length of a `with` block: Ray, or the processes of this machine.

What comes in: the demands of all roles. What goes out: an open session, or a ResourceError before any work starts.
Decision: pool and gang ask for the session that is open instead of being handed it, as with Ray's own connection; the
price is one list of open sessions in this module.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from raydpo.runtime.backend import Backend, Kind
from raydpo.runtime.patience import NodePatience
from raydpo.runtime.resources import Demand, check_demands, count_fitting


@dataclass(eq=False)
class _Open:
    """A session that is open, how long its roles wait, and whose it is. lends_cpus: as of `session`. proved: folder -> nodes
    that share it."""

    backend: Backend
    patience: NodePatience
    run: str
    lends_cpus: bool = False
    proved: dict[Path, set[str]] = field(default_factory=dict)


_open: list[_Open] = []


@contextmanager
def session(
    demands: Sequence[Demand] = (),
    *,
    kind: Kind = "ray",
    in_process: bool = True,
    local_cpus: int | None = None,
    patience: NodePatience | None = None,
    run: str = "",
    lends_cpus: bool = False,
) -> Iterator[None]:
    """Connect, check `demands`, and disconnect at the end. A session inside one of the same kind reuses the outer one;
    a local one inside another has its CPUs.

    kind: ray (with RAY_ADDRESS the cluster there, else a private one on this machine) or local (processes of this
        machine without Ray).
    in_process: of local, whether a role of one actor runs in this process.
    local_cpus: CPUs that a machine declares, instead of those it has; ignored on a cluster.
    patience: with nodes that are still to come. None: that of the outer session, without one none.
    run: whose numbers a cluster's monitoring shows; empty: that of the outer session.
    lends_cpus: a gang stands and waits; pools work on the CPUs that it holds, and reserve none.

    Raises ResourceError when a demand can never be met (unless nodes are waited for), no cluster answers at RAY_ADDRESS, or
        local is asked for on one.
    """
    outer = _open[-1] if _open else None
    run = run or (outer.run if outer is not None else "")
    patience = patience or (outer.patience if outer is not None else NodePatience())
    lends_cpus = lends_cpus or (outer is not None and outer.lends_cpus)
    if outer is not None and (outer.backend.kind, outer.backend.in_process) == (kind, in_process and kind == "local"):
        with _within(outer.backend, demands, patience, run, lends_cpus):
            yield
        return
    if outer is not None and kind == "local" and local_cpus is None:
        local_cpus = int(sum(node.resources.get("CPU", 0.0) for node in outer.backend.nodes()))
    with _opened(kind, in_process, local_cpus) as backend, _within(backend, demands, patience, run, lends_cpus):
        yield


@contextmanager
def _within(
    backend: Backend, demands: Sequence[Demand], patience: NodePatience, run: str, lends_cpus: bool
) -> Iterator[None]:
    nodes = backend.nodes()
    if patience.wait_s and backend.kind == "ray":
        for demand in demands:
            if (room := count_fitting(demand, nodes)) < demand.workers:
                patience.say(
                    f"{demand.role}: {demand.workers} workers need room, and there is room for {room} now; others are asked "
                    f"for and waited for when its turn comes (run.wait_for_nodes_s: {patience.wait_s:g})"
                )
    else:
        check_demands(demands, nodes)
    entry = _Open(backend, patience, run, lends_cpus)
    _open.append(entry)
    try:
        yield
    finally:
        _open.remove(entry)


def _opened(kind: Kind, in_process: bool, local_cpus: int | None) -> AbstractContextManager[Backend]:
    if kind == "local":
        from raydpo.runtime.local_backend import open_local

        return open_local(local_cpus, in_process=in_process)
    from raydpo.runtime.ray_session import open_ray

    return open_ray(local_cpus)


def current() -> Backend:
    """The session that was opened last."""
    if not _open:
        raise RuntimeError("no session is open: work for actors belongs inside `with runtime.session(...)`")
    return _open[-1].backend


def home() -> Backend:
    """The same, for a gang that outlives the sessions inside it."""
    return current()


def lends_cpus() -> bool:
    """Whether pools of the session that was opened last work on the CPUs of a gang that waits."""
    return bool(_open) and _open[-1].lends_cpus


def patience() -> NodePatience:
    """How long roles of the session that was opened last wait for nodes."""
    return _open[-1].patience if _open else NodePatience()


def show(name: str, help_text: str, value: float, role: str) -> None:
    """Let the monitoring of the session's runtime see a number of the run; without a session nothing happens."""
    if _open:
        _open[-1].backend.show(name, help_text, value, {"run": _open[-1].run, "role": role})


def count_gpus() -> int:
    """GPUs of all nodes of the open session."""
    return int(sum(node.resources.get("GPU", 0.0) for node in current().nodes()))


def count_cpus() -> int:
    """CPUs of all nodes of the open session, at least 1."""
    return max(1, int(sum(node.resources.get("CPU", 0.0) for node in current().nodes())))


def count_nodes() -> int:
    """Nodes of the open session."""
    return len(current().nodes())


def count_room(demand: Demand) -> int:
    """Workers of `demand` that the living nodes of the open session have room for, at most as many as it asks for."""
    return min(demand.workers, count_fitting(demand, current().nodes()))


def leaving_nodes() -> frozenset[str]:
    """Nodes of the open session that will be taken away, as the cluster was told."""
    return current().leaving()


def wait_for_room(demand: Demand) -> None:
    """Return once the living nodes have room for `demand`; Ray is asked for what lacks: a node that was lost may be replaced,
    an autoscaler may start one. Raises ResourceError."""
    if count_room(demand) < demand.workers:
        waiting = patience().for_nodes()
        with current().wish(demand):
            while (room := count_room(demand)) < demand.workers and waiting.goes_on(partial(_lacking, demand, room)):
                time.sleep(1)
    check_demands([demand], current().nodes())


def wait_for_nodes(demand: Demand) -> None:
    """The same where nodes are waited for; otherwise the session has checked the demand, and nothing is done."""
    if patience().wait_s:
        wait_for_room(demand)


def _lacking(demand: Demand, room: int) -> str:
    return f"{demand.role}: waiting for nodes, room for {room} of {demand.workers} on {count_nodes()}"


def check_storage(folder: Path) -> None:
    """Prove that every node of the open session reads and writes the same `folder`. Nothing is done on one node.

    Raises StorageError with one sentence for each node that does not.
    """
    _open[-1].proved[folder] = set(current().check_storage(folder))


def unseen_storage(node_id: str) -> str:
    """What is wrong on a node with the folders that were proved, if it came after that and was not asked yet; empty for
    nothing."""
    backend = current()
    for entry in [entry for entry in _open if entry.backend is backend]:
        for folder, nodes in list(entry.proved.items()):
            if node_id not in nodes and (problem := backend.unseen_on(node_id, folder)):
                return problem
            nodes.add(node_id)
    return ""
