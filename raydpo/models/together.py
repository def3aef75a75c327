"""Calls of a model that do not wait for each other, and whoever makes them: one by one, or all in one pass over its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

B = TypeVar("B")

Call = Callable[[], Any]
Together = Callable[[Sequence[Call]], list[Any]]
"""Calls in, what each returns out."""


def one_by_one(calls: Sequence[Call]) -> list[Any]:
    """What each of `calls` returns, of a model that is there whole."""
    return [call() for call in calls]


def passes(batches: Iterable[B], num_tokens_of: Callable[[B], int], tokens_per_pass: int) -> Iterator[list[B]]:
    """As many of `batches`, in order, as fit into a pass; one that does not fit alone has its own."""
    together, num_tokens = list[B](), 0
    for batch in batches:
        size = num_tokens_of(batch)
        if together and num_tokens + size > tokens_per_pass:
            yield together
            together, num_tokens = [], 0
        together.append(batch)
        num_tokens += size
    if together:
        yield together
