"""The local runtime: this machine without Ray, for laptops, notebooks, debuggers and quick tests.

What comes in: nothing but the machine. What goes out: an open session. Decision: a role of one actor runs in this process
unless that is switched off or its work leaves traces in a process; all others are processes. What only Ray can do, several
nodes and places on them, is refused in a sentence.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from raydpo.errors import ResourceError
from raydpo.runtime.backend import Actors, Kind
from raydpo.runtime.forked_process import ForkServers
from raydpo.runtime.import_path import LOCAL_CPUS_VARIABLE
from raydpo.runtime.in_process import InProcess
from raydpo.runtime.job import in_ray_job
from raydpo.runtime.local_gpus import LocalGpus
from raydpo.runtime.local_processes import LocalProcesses
from raydpo.runtime.resources import Demand, Node


class LocalBackend:
    """See `raydpo.runtime.backend.Backend`. folder: for the output of its processes."""

    kind: Kind = "local"

    def __init__(self, num_cpus: int, folder: Path, *, in_process: bool) -> None:
        self.in_process = in_process
        self._num_cpus, self._folder, self._gpus = num_cpus, folder, LocalGpus()
        self._servers = ForkServers(folder)

    def nodes(self) -> list[Node]:
        return [Node({"CPU": float(self._num_cpus), "GPU": float(self._gpus.number)})]

    def leaving(self) -> frozenset[str]:
        return frozenset()

    def wish(self, demand: Demand) -> AbstractContextManager[None]:
        return nullcontext()  # nobody starts another machine

    def gpus_shared(self, num_gpus: int) -> AbstractContextManager[None]:
        assert not num_gpus, "processes of this machine have their GPUs alone"
        return nullcontext()

    def actors(self, num_actors: int, *, own_process: bool, preload: Sequence[str] = ()) -> Actors:
        if num_actors == 1 and self.in_process and not own_process:
            return InProcess()
        return LocalProcesses(self._gpus, self._folder, self._servers, preload)

    def show(self, name: str, help_text: str, value: float, labels: dict[str, str]) -> None:
        pass  # nobody scrapes a machine without a cluster

    def close(self) -> None:
        self._servers.close()

    def check_storage(self, folder: Path) -> frozenset[str]:
        return frozenset()

    def unseen_on(self, node_id: str, folder: Path) -> str:
        return ""  # one machine sees what it writes


@contextmanager
def open_local(local_cpus: int | None, *, in_process: bool) -> Iterator[LocalBackend]:
    """A session on this machine. Raises ResourceError where a cluster was meant."""
    address = os.environ.get("RAY_ADDRESS", "")
    if in_ray_job() or address not in ("", "local"):
        where = "this is a submitted Ray job" if in_ray_job() else f"RAY_ADDRESS is {address!r}"
        raise ResourceError(
            f"run.runtime: local works on this machine alone, and {where}: the nodes of that cluster would stand idle. Several "
            "nodes, and places on them, are what run.runtime: ray is for. Leave run.runtime (or --local) out, or unset "
            "RAY_ADDRESS to run on this machine."
        )
    declared = os.environ.get(LOCAL_CPUS_VARIABLE)
    num_cpus = local_cpus or (int(declared) if declared else len(os.sched_getaffinity(0)))
    folder = Path(tempfile.mkdtemp(prefix="raydpo-"))
    backend = LocalBackend(num_cpus, folder, in_process=in_process)
    try:
        yield backend
    finally:
        backend.close()
        shutil.rmtree(folder, ignore_errors=True)
