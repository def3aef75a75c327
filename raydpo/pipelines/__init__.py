"""Pipelines: which stage comes after which. The verbs of the command line and of the Python API.

Names are looked up when they are first used: a check needs none of what training imports.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raydpo.pipelines.dry_run import check as check
    from raydpo.pipelines.offline import evaluate as evaluate
    from raydpo.pipelines.offline import precompute as precompute
    from raydpo.pipelines.offline import train as train
    from raydpo.pipelines.online import iterate as iterate
    from raydpo.pipelines.online import run_rounds as run_rounds
    from raydpo.rounds.run import Round as Round

_HOMES = {
    "Round": "raydpo.rounds.run",
    "check": "raydpo.pipelines.dry_run",
    "evaluate": "raydpo.pipelines.offline",
    "iterate": "raydpo.pipelines.online",
    "precompute": "raydpo.pipelines.offline",
    "run_rounds": "raydpo.pipelines.online",
    "train": "raydpo.pipelines.offline",
}

__all__ = ["Round", "check", "evaluate", "iterate", "precompute", "run_rounds", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
