"""A pool of actors that share one queue of items.

What comes in: a factory that each actor calls once (it loads the model) and the items. What goes out: results as they
come, each with its item's index.
Decision: the driver hands out one item at a time to whoever is free, so a slow actor never holds back work, and an
item whose actor died is simply handed out again. Items must therefore be idempotent by the name of their output.
Price: one round trip an item; items should be worth seconds.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from raydpo.errors import ResourceError, WorkerError
from raydpo.runtime.failure import Failure, cause_of_death, error_of, failure_of
from raydpo.runtime.placement import (
    PLACEMENT_TIMEOUT_S,
    Place,
    kill,
    load_function,
    place_of_this_process,
    thread_variables,
)

T = TypeVar("T")
R = TypeVar("R")

_log = logging.getLogger(__name__)


def run_pool(
    name: str,
    make_worker: Callable[[], Callable[[T], R]],
    items: Sequence[T],
    *,
    num_workers: int,
    cpus: float,
    gpus: float = 0.0,
    max_retries: int = 0,
) -> Generator[tuple[int, R], None, None]:
    """Apply workers to `items` on up to `num_workers` actors; yield (index, result) in the order they finish.

    make_worker: module-level function or partial, called once an actor; returns the callable that takes items.
    cpus, gpus: reserved for each actor. max_retries: how often one item may lose its actor and be given to another.
    Results should be small (records, not tensors). Closing the iterator ends all actors.
    Raises the RaydpoError a worker raised; WorkerError for any other exception (never retried) and for an item that
    lost its actor once too often; ResourceError when no actor gets its CPUs and GPUs.
    """
    pool: _Pool = _Pool(name, make_worker, items, cpus=cpus, gpus=gpus, max_retries=max_retries)
    try:
        pool.start(min(num_workers, len(items)))
        yield from pool.results()
    finally:
        pool.close()


def run_single(name: str, function: Callable[..., R], *args: Any, cpus: float = 1.0, gpus: float = 0.0) -> R:
    """Call `function(*args)` in one actor of its own and return the result. Errors as in `run_pool`, no retry."""
    ((_, result),) = run_pool(name, partial(_spread, function), [args], num_workers=1, cpus=cpus, gpus=gpus)
    return result


def _spread(function: Callable[..., R]) -> Callable[[tuple[Any, ...]], R]:
    return lambda args: function(*args)


class PoolActor:
    """Runs in its own process: place, then prepare, then work on items one by one."""

    def place(self) -> Place:
        """First call; answers as soon as the actor has its CPUs and GPUs."""
        return place_of_this_process()

    def prepare(self, payload: bytes, variables: dict[str, str]) -> Failure | None:
        """Make the worker (which may load a model for minutes)."""
        try:
            self._work = load_function(payload, variables)()
        except Exception as error:  # noqa: BLE001 - whatever user code raises travels to the driver as a record
            return failure_of(error)
        return None

    def work(self, item: Any) -> Any:
        """One item. An exception comes back as a Failure, not through Ray."""
        try:
            return self._work(item)
        except Exception as error:  # noqa: BLE001 - as above
            return failure_of(error)


@dataclass
class _Worker:
    number: int
    actor: Any
    place: Place | None = None
    ready: bool = False
    item: int | None = None


class _Pool:
    def __init__(
        self, name: str, make_worker: Any, items: Sequence[Any], *, cpus: float, gpus: float, max_retries: int
    ) -> None:
        self._name, self._items, self._max_retries = name, items, max_retries
        self._cpus, self._gpus = cpus, gpus
        self._payload = ray.put(ray.cloudpickle.dumps(make_worker))
        self._actor_class = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0)(PoolActor)
        self._queue = deque(range(len(items)))
        self._num_unfinished = len(items)
        self._deaths_of_item: dict[int, int] = {}
        self._deaths_at_start = 0
        self._calls: dict[Any, _Worker] = {}
        self._workers: dict[int, _Worker] = {}
        self._idle: list[_Worker] = []
        self._waiting_since_s = time.monotonic()

    def start(self, num_workers: int) -> None:
        for number in range(num_workers):
            self._start_worker(number)

    def results(self) -> Iterator[tuple[int, Any]]:
        while self._num_unfinished:
            finished, _ = ray.wait(list(self._calls), num_returns=1, timeout=5.0)
            if not finished:
                self._check_placement()
            for call in finished:
                worker = self._calls.pop(call)
                try:
                    answer = ray.get(call)
                except RayTaskError as error:
                    raise WorkerError(f"{self._describe(worker)} failed: {error}") from error
                except RayError as error:
                    self._bury(worker, error)
                    continue
                if isinstance(answer, Failure):
                    raise error_of(answer, self._describe(worker))
                if not worker.ready:
                    self._advance(worker, answer)
                    continue
                index, worker.item = worker.item, None
                self._num_unfinished -= 1
                self._deaths_at_start = 0
                self._feed(worker)
                assert index is not None
                yield index, answer

    def close(self) -> None:
        for worker in self._workers.values():
            kill(worker.actor)

    def _start_worker(self, number: int) -> None:
        worker = _Worker(number, self._actor_class.remote())
        self._workers[number] = worker
        self._calls[worker.actor.place.remote()] = worker
        self._waiting_since_s = time.monotonic()

    def _advance(self, worker: _Worker, answer: Place | None) -> None:
        """Placed -> prepare; prepared -> first item."""
        if answer is not None:
            worker.place = answer
            variables = thread_variables(self._cpus, self._gpus)
            self._calls[worker.actor.prepare.remote(self._payload, variables)] = worker
        else:
            worker.ready = True
            self._feed(worker)

    def _feed(self, worker: _Worker) -> None:
        if not self._queue:
            self._idle.append(worker)
            return
        worker.item = self._queue.popleft()
        self._calls[worker.actor.work.remote(self._items[worker.item])] = worker

    def _bury(self, worker: _Worker, error: RayError) -> None:
        """A dead worker's item goes to another one, within bounds."""
        kill(worker.actor)
        del self._workers[worker.number]
        message = f"{self._describe(worker)} died: {cause_of_death(error)}."
        if worker.item is None and not self._queue:
            return
        if worker.item is None:
            self._deaths_at_start += 1
            if self._deaths_at_start > self._max_retries:
                raise WorkerError(f"{message} This was before it took an item. {self._remedy()}") from error
            _log.warning("%s Another one starts in its place.", message)
        else:
            deaths = self._deaths_of_item[worker.item] = self._deaths_of_item.get(worker.item, 0) + 1
            if deaths > self._max_retries:
                raise WorkerError(
                    f"{message} {deaths} workers died over this item, and no more than {self._max_retries} retries "
                    f"are allowed. {self._remedy()}"
                ) from error
            self._queue.appendleft(worker.item)
            _log.warning("%s The item goes to another one (retry %d of %d).", message, deaths, self._max_retries)
        if self._idle and self._queue:
            self._feed(self._idle.pop())
        elif self._queue:
            self._start_worker(worker.number)

    def _check_placement(self) -> None:
        waited_s = time.monotonic() - self._waiting_since_s
        if waited_s > PLACEMENT_TIMEOUT_S and all(worker.place is None for worker in self._workers.values()):
            raise ResourceError(
                f"{self._name}: no worker got its {self._cpus:g} CPUs and {self._gpus:g} GPUs within {waited_s:.0f} s. "
                f"Free in the cluster now: {_free()}. Other jobs hold the rest, or nodes were lost. Wait for them, or "
                "lower what each worker takes."
            )

    def _describe(self, worker: _Worker) -> str:
        where = f" ({worker.place})" if worker.place else ""
        if worker.item is None:
            return f"{self._name} worker {worker.number}{where}"
        text = repr(self._items[worker.item])
        short = text if len(text) <= 160 else text[:160] + "..."
        return f"{self._name} worker {worker.number}{where}, item {worker.item} of {len(self._items)} ({short})"

    def _remedy(self) -> str:
        return (
            "If it was memory, run fewer workers or smaller batches; the logs of Ray on that node have its last output."
        )


def _free() -> str:
    free = ray.available_resources()
    return f"{free.get('CPU', 0.0):g} CPUs and {free.get('GPU', 0.0):g} GPUs"
