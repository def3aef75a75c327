"""Prefetch: the batches of the next step are built while this one runs.

Decision: one thread and one step ahead. Building is numpy over mapped files, a small part of a step; what it returns
depends on the step alone, so nothing that is computed changes.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """`take(step)` returns build(step) and starts on build(step + 1), unless that is `num_steps` or more."""

    def __init__(self, build: Callable[[int], T], num_steps: int) -> None:
        self._build, self._num_steps = build, num_steps
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._waiting: dict[int, Future[T]] = {}

    def take(self, step: int) -> T:
        """What was built for `step`. An error of the build is raised here."""
        value = (self._waiting.pop(step, None) or self._thread.submit(self._build, step)).result()
        self._waiting.clear()
        if step + 1 < self._num_steps:
            self._waiting[step + 1] = self._thread.submit(self._build, step + 1)
        return value

    def close(self) -> None:
        """Build no more."""
        self._thread.shutdown(wait=True, cancel_futures=True)
