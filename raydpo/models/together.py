"""Calls of a model that do not wait for each other, and whoever makes them: one by one, or all in one pass over its layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Call = Callable[[], Any]
Together = Callable[[Sequence[Call]], list[Any]]
"""Calls in, what each returns out."""


def one_by_one(calls: Sequence[Call]) -> list[Any]:
    """What each of `calls` returns, of a model that is there whole."""
    return [call() for call in calls]
