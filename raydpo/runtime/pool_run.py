"""A pool for one list of items: actors start, work and end.

What comes in: a factory and items, as for a `Pool`. What goes out: results as they come. Decision: whoever closes the iterator
ends the actors, so nobody has to remember a pool.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import TypeVar

from raydpo.runtime.place import Place
from raydpo.runtime.placement import ANYWHERE, Placement
from raydpo.runtime.pool import HANG_TIMEOUT_S, Pool

T = TypeVar("T")
R = TypeVar("R")


def run_pool(
    name: str,
    make_worker: Callable[[], Callable[[T], R]],
    items: Sequence[T],
    *,
    num_workers: int,
    cpus: float,
    gpus: float = 0.0,
    max_retries: int = 0,
    hang_timeout_s: float = HANG_TIMEOUT_S,
    hang_key: str = "hang_timeout_s",
    lighter: Callable[[T], T] | None = None,
    threads: float | None = None,
    own_process: bool = False,
    preload: Sequence[str] = (),
    placement: Placement = ANYWHERE,
    placed: Callable[[Place], None] | None = None,
) -> Generator[tuple[int, R], None, None]:
    """Apply workers to `items` on up to `num_workers` actors; yield (index, result) in the order they finish.

    make_worker: module-level function or partial, called once an actor; returns the callable that takes items.
    cpus, gpus: reserved for each actor. placement: on which nodes.
    max_retries: how often one item may lose its actor and be given to another.
    hang_timeout_s: longest time of an actor without an answer or a beat (`schema.pulse`), from the moment when it has its
        place. One that is here cannot be ended: it prints where it is, and goes on.
    hang_key: the key to raise, for messages.
    lighter: the item as it is tried again with less memory: after its worker was killed for the memory of its host, and
        after a second one was killed by a signal, which may have been the kernel's for the same reason.
    threads: of each actor, by default as many as its CPUs.
    own_process: workers leave traces in their process, so none may be this one (a single worker of the local runtime
        is here otherwise).
    preload: modules that each actor imports anyway; local processes share one import of them, which comes before the
        variables of threads (torch is told its number of threads afterwards).
    placed: gets the place of each actor as soon as it has one, which may be long after the others began.

    Results should be small (records, not tensors). Closing the iterator ends all actors.
    Raises the RaydpoError a worker raised; WorkerError for any other exception (never retried) and for an item that
    lost its actor once too often, HangError if by a hang; ResourceError when no actor gets its CPUs and GPUs; StorageError
    when no node is left but one that came late and does not share what `check_storage` proved.
    """
    pool = Pool(
        name,
        make_worker,
        num_workers=num_workers,
        cpus=cpus,
        gpus=gpus,
        max_retries=max_retries,
        hang_timeout_s=hang_timeout_s,
        hang_key=hang_key,
        lighter=lighter,
        threads=threads,
        own_process=own_process,
        preload=preload,
        placement=placement,
        placed=placed,
    )
    with closing(pool):
        yield from pool.run(items)
