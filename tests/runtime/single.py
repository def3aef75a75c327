"""One call in one actor: the smallest use of a pool."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from raydpo.runtime import run_pool

R = TypeVar("R")


def run_single(name: str, function: Callable[..., R], *args: Any, cpus: float = 1.0, gpus: float = 0.0) -> R:
    """Call `function(*args)` in one actor of a pool and return the result."""
    ((_, result),) = run_pool(name, partial(_spread, function), [args], num_workers=1, cpus=cpus, gpus=gpus)
    return result


def _spread(function: Callable[..., R]) -> Callable[[tuple[Any, ...]], R]:
    return lambda args: function(*args)
