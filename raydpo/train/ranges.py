"""Named ranges in a profile: what a step is made of that operators do not say by themselves.

Decision: a range exists only while a profiler is on; otherwise the code inside runs as if nothing were around it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch.profiler import record_function

T = TypeVar("T")

STEP = "raydpo::step"
"""One optimizer step, all of it."""
WAITING = "raydpo::waiting"
"""Until the next micro-batches are there."""
OPTIMIZER = "raydpo::optimizer"
"""What the engine does with the accumulated gradient."""


def named(name: str) -> AbstractContextManager[Any]:
    """A range of the profile, if there is one."""
    return record_function(name) if torch.autograd._profiler_enabled() else nullcontext()  # type: ignore[attr-defined]


def waited(items: Iterable[T]) -> Iterable[T]:
    """The same items, each taken inside the range WAITING; `items` itself without a profiler."""
    return _waited(iter(items)) if torch.autograd._profiler_enabled() else items  # type: ignore[attr-defined]


def _waited(items: Iterator[T]) -> Iterator[T]:
    while True:
        with record_function(WAITING):
            try:
                item = next(items)
            except StopIteration:
                return
        yield item
