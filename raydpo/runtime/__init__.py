"""Sessions, pools of workers, gangs of ranks: on Ray, and only here, or on processes of this machine. Runs what it is handed.

What comes in: module-level functions (or partials of them) and plain data. What goes out: what they return or yield,
or one of raydpo.errors with a message that names the actor and the cause.
Decision: names are loaded on first use, so that `in_ray_job` and `check_paths` cost no import of ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raydpo.runtime.backend import Backend as Backend
    from raydpo.runtime.backend import Kind as Kind
    from raydpo.runtime.gang import Gang as Gang
    from raydpo.runtime.gang import run_gang as run_gang
    from raydpo.runtime.gauges import gauge as gauge
    from raydpo.runtime.job import check_paths as check_paths
    from raydpo.runtime.job import in_ray_job as in_ray_job
    from raydpo.runtime.job import short_stop as short_stop
    from raydpo.runtime.news import News as News
    from raydpo.runtime.patience import NodePatience as NodePatience
    from raydpo.runtime.place import Place as Place
    from raydpo.runtime.placement import Placement as Placement
    from raydpo.runtime.pool import Pool as Pool
    from raydpo.runtime.pool_run import run_pool as run_pool
    from raydpo.runtime.rank_actor import RankContext as RankContext
    from raydpo.runtime.resources import Demand as Demand
    from raydpo.runtime.sessions import check_storage as check_storage
    from raydpo.runtime.sessions import count_cpus as count_cpus
    from raydpo.runtime.sessions import count_gpus as count_gpus
    from raydpo.runtime.sessions import count_nodes as count_nodes
    from raydpo.runtime.sessions import count_room as count_room
    from raydpo.runtime.sessions import home as home
    from raydpo.runtime.sessions import leaving_nodes as leaving_nodes
    from raydpo.runtime.sessions import session as session
    from raydpo.runtime.sessions import wait_for_nodes as wait_for_nodes
    from raydpo.runtime.sessions import wait_for_room as wait_for_room
    from raydpo.runtime.shared_gpus import gpus_shared as gpus_shared
    from raydpo.runtime.spread import spread_of as spread_of
    from raydpo.runtime.stops import ask_to_stop as ask_to_stop
    from raydpo.runtime.stops import deferred as deferred
    from raydpo.runtime.stops import has_grace as has_grace
    from raydpo.runtime.stops import requested as requested
    from raydpo.runtime.stops import watching as watching

_HOME = {
    "Backend": "backend",
    "Demand": "resources",
    "Gang": "gang",
    "Kind": "backend",
    "Pool": "pool",
    "RankContext": "rank_actor",
    "News": "news",
    "NodePatience": "patience",
    "Place": "place",
    "Placement": "placement",
    "ask_to_stop": "stops",
    "check_paths": "job",
    "check_storage": "sessions",
    "count_cpus": "sessions",
    "count_gpus": "sessions",
    "count_nodes": "sessions",
    "count_room": "sessions",
    "deferred": "stops",
    "gauge": "gauges",
    "gpus_shared": "shared_gpus",
    "has_grace": "stops",
    "home": "sessions",
    "in_ray_job": "job",
    "leaving_nodes": "sessions",
    "requested": "stops",
    "run_gang": "gang",
    "run_pool": "pool_run",
    "session": "sessions",
    "short_stop": "job",
    "spread_of": "spread",
    "wait_for_nodes": "sessions",
    "wait_for_room": "sessions",
    "watching": "stops",
}

__all__ = [
    "Backend",
    "Demand",
    "Gang",
    "Kind",
    "News",
    "NodePatience",
    "Place",
    "Placement",
    "Pool",
    "RankContext",
    "ask_to_stop",
    "check_paths",
    "check_storage",
    "count_cpus",
    "count_gpus",
    "count_nodes",
    "count_room",
    "deferred",
    "gauge",
    "gpus_shared",
    "has_grace",
    "home",
    "in_ray_job",
    "leaving_nodes",
    "requested",
    "run_gang",
    "run_pool",
    "session",
    "short_stop",
    "spread_of",
    "wait_for_nodes",
    "wait_for_room",
    "watching",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
