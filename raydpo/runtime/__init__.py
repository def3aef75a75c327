"""Ray, and only here: sessions, pools of workers, gangs of ranks, probes. Runs the callables it is handed.

What comes in: module-level functions (or partials of them) and plain data. What goes out: what they return or yield,
or one of raydpo.errors with a message that names the actor and the cause.
Decision: names are loaded on first use, so that `in_ray_job` and `check_paths` cost no import of ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raydpo.runtime.connection import count_cpus as count_cpus
    from raydpo.runtime.connection import count_gpus as count_gpus
    from raydpo.runtime.connection import session as session
    from raydpo.runtime.gang import RankContext as RankContext
    from raydpo.runtime.gang import run_gang as run_gang
    from raydpo.runtime.job import check_paths as check_paths
    from raydpo.runtime.job import in_ray_job as in_ray_job
    from raydpo.runtime.pool import Pool as Pool
    from raydpo.runtime.pool import run_pool as run_pool
    from raydpo.runtime.resources import Demand as Demand
    from raydpo.runtime.storage import check_storage as check_storage

_HOME = {
    "Demand": "resources",
    "Pool": "pool",
    "RankContext": "gang",
    "check_paths": "job",
    "check_storage": "storage",
    "count_cpus": "connection",
    "count_gpus": "connection",
    "in_ray_job": "job",
    "run_gang": "gang",
    "run_pool": "pool",
    "session": "connection",
}

__all__ = [
    "Demand",
    "Pool",
    "RankContext",
    "check_paths",
    "check_storage",
    "count_cpus",
    "count_gpus",
    "in_ray_job",
    "run_gang",
    "run_pool",
    "session",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
