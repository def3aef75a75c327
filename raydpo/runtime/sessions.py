"""A session with a runtime for the length of a `with` block: Ray, or the processes of this machine.

What comes in: the demands of all roles. What goes out: an open session, or a ResourceError before any work starts.
Decision: pool and gang ask for the session that is open instead of being handed it, as with Ray's own connection; the
price is one list of open sessions in this module.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from raydpo.runtime.backend import Backend, Kind
from raydpo.runtime.place import PLACEMENT_TIMEOUT_S
from raydpo.runtime.resources import Demand, check_demands, count_fitting

_open: list[Backend] = []


@contextmanager
def session(
    demands: Sequence[Demand] = (), *, kind: Kind = "ray", in_process: bool = True, local_cpus: int | None = None
) -> Iterator[None]:
    """Connect, check `demands`, and disconnect at the end. A session inside one of the same kind reuses the outer one;
    a local one inside another has its CPUs.

    kind: ray (with RAY_ADDRESS the cluster there, else a private one on this machine) or local (processes of this
        machine without Ray).
    in_process: of local, whether a role of one actor runs in this process.
    local_cpus: CPUs that a machine declares, instead of those it has; ignored on a cluster.

    Raises ResourceError when a demand can never be met, no cluster answers at RAY_ADDRESS, or local is asked for on
        one.
    """
    outer = _open[-1] if _open else None
    if outer is not None and (outer.kind, outer.in_process) == (kind, in_process and kind == "local"):
        check_demands(demands, outer.nodes())
        yield
        return
    if outer is not None and kind == "local" and local_cpus is None:
        local_cpus = int(sum(node.resources.get("CPU", 0.0) for node in outer.nodes()))
    with _opened(kind, in_process, local_cpus) as backend:
        check_demands(demands, backend.nodes())
        _open.append(backend)
        try:
            yield
        finally:
            _open.remove(backend)


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
    return _open[-1]


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
    """Return once the living nodes have room for `demand`: a node that was lost may be replaced. Raises ResourceError."""
    deadline_s = time.monotonic() + PLACEMENT_TIMEOUT_S
    while count_room(demand) < demand.workers and time.monotonic() < deadline_s:
        time.sleep(1)
    check_demands([demand], current().nodes())


def check_storage(folder: Path) -> None:
    """Prove that every node of the open session reads and writes the same `folder`. Nothing is done on one node.

    Raises StorageError with one sentence for each node that does not.
    """
    current().check_storage(folder)
