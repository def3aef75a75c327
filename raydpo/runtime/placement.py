"""Actors on their nodes: options, first call, environment, death.

What comes in: CPUs and GPUs of one actor. What goes out: actor handles with the place they landed on.
Decision: environment variables are set by the actor's first call, and the user's function reaches it as bytes that
are unpickled only then. So they are there before torch is imported, and no runtime environment has to be built.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray

PLACEMENT_TIMEOUT_S = 900.0
"""How long actors may wait for CPUs and GPUs that exist but are taken (by other jobs, or by actors still ending)."""


@dataclass(frozen=True)
class Place:
    """Where an actor runs."""

    node_id: str
    host: str
    pid: int

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}"


def place_of_this_process() -> Place:
    """Node, address and pid of the actor that calls it."""
    return Place(ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address(), os.getpid())


def thread_variables(cpus: float, gpus: float) -> dict[str, str]:
    """Environment of one compute process: as many threads as CPUs are reserved, and the CPU back end without a GPU."""
    variables = {"OMP_NUM_THREADS": str(max(1, int(cpus))), "TOKENIZERS_PARALLELISM": "false"}
    if gpus == 0:
        variables["DS_ACCELERATOR"] = "cpu"
    return variables


def load_function(payload: bytes, variables: Mapping[str, str]) -> Any:
    """In the actor: set `variables`, then unpickle the function (which imports its modules)."""
    os.environ.update(variables)
    return ray.cloudpickle.loads(payload)


def kill(actor: Any) -> None:
    """End an actor's process at once. Killing a dead one is fine."""
    with suppress(Exception):
        ray.kill(actor, no_restart=True)
