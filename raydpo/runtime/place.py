"""Where an actor runs, and what its process is given before anything of the user's is imported there.

What comes in: CPUs and GPUs of one actor. What goes out: a `Place`, variables, the function.
Decision: environment variables are set by the actor's first call, and the user's function reaches it as bytes that
are unpickled only then. So they are there before torch is imported, and no runtime environment has to be built.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raydpo.runtime.bulk_import import import_modules, uncollected

PLACEMENT_TIMEOUT_S = 900.0
"""How long actors may wait for CPUs and GPUs that exist but are taken (by other jobs, or by actors still ending)."""


@dataclass(frozen=True)
class Place:
    """Where an actor runs.

    node_id: the runtime's id of the node.
    host, pid: machine and process.
    device: index of its GPU among those that its process sees.
    outward: variables with which it meets processes of other nodes.
    """

    node_id: str
    host: str
    pid: int
    device: str = "0"
    outward: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}"


SHARE_OF_NODE = "share of the node"
"""As the number of threads: the cores of the node, divided by the ranks on it. What a rank makes of it where it runs."""


def rank_threads(cpus: float, gpus: float) -> dict[str, str]:
    """`thread_variables` of a rank of a gang. With a GPU and no CPUs asked for, beyond the one of the default, its share of the
    node: loading, offloaded optimizers and collation would have one core of a hundred."""
    share = {"OMP_NUM_THREADS": SHARE_OF_NODE} if gpus and cpus <= 1 else {}
    return thread_variables(cpus, gpus) | share


def thread_variables(cpus: float, gpus: float) -> dict[str, str]:
    """Environment of one compute process: as many threads as CPUs are reserved, and the CPU back end without a GPU."""
    variables = {"OMP_NUM_THREADS": str(max(1, int(cpus))), "TOKENIZERS_PARALLELISM": "false"}
    if gpus == 0:
        variables["DS_ACCELERATOR"] = "cpu"
    return variables


def load_function(payload: bytes, variables: Mapping[str, str], preload: Sequence[str] = ()) -> Any:
    """In the actor: set `variables`, import `preload`, then unpickle the function (which imports its modules)."""
    if variables.get("OMP_NUM_THREADS") == SHARE_OF_NODE:
        share = len(os.sched_getaffinity(0)) // int(variables["LOCAL_WORLD_SIZE"])
        variables = {**variables, "OMP_NUM_THREADS": str(max(1, share))}
    os.environ.update(variables)
    torch = sys.modules.get("torch")
    if torch is not None and "OMP_NUM_THREADS" in variables:  # the driver's, or imported before the fork: too late
        torch.set_num_threads(int(variables["OMP_NUM_THREADS"]))
    import_modules(preload)
    with uncollected():
        return pickle.loads(payload)
