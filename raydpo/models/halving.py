"""A batch that did not fit into memory is done in halves, so that one long batch does not end hours of work.

Comes in: how many rows there are and a forward of a part of them. Goes out: what the forward gives, part by part, in order.
Decision: the parts of one batch alone are halved and the next batch is tried whole, so that what a row is computed with
depends on its own batch and not on what came before. Price: where every batch is too large, each is tried in vain; whoever
calls says once that the budget is too high.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

R = TypeVar("R")

_TEXTS = ("can't allocate memory", "out of memory", "std::bad_alloc", "ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed. torch has a class for that on a GPU, on a CPU a text alone."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


def in_halves(
    start: int, stop: int, forward: Callable[[int, int], R], too_much: Callable[[int, int, str], None]
) -> Iterator[R]:
    """`forward(start, stop)`; where memory does not suffice, that of both halves, and so on down to single rows.

    too_much: called with each part that did not fit and the first line of the reason; it may raise. A single row is not
    tried again: what torch raised goes on.
    """
    try:
        result = forward(start, stop)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        too_much(start, stop, (str(error) or "MemoryError").splitlines()[0])
        if stop - start <= 1:
            raise
    else:
        yield result
        return
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = (start + stop) // 2
    yield from in_halves(start, middle, forward, too_much)
    yield from in_halves(middle, stop, forward, too_much)
