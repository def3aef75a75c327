"""A pool of workers (actors) that share one queue of items.

What comes in: a factory that each actor calls once (it loads the model) and the items. What goes out: results as they
come, each with its item's index.
Decision: the driver hands out one item at a time to whoever is free, so a slow actor never holds back work, and an
item whose actor died simply goes back to the queue; one that is silent beyond the deadline is ended and counts as dead.
Items must therefore be idempotent by the name of their output. A worker that `TakesSeveral` is given another one whenever it
has room, no more than its share of what is unfinished; all that it has in work go back when it dies.
Price: one round trip an item; items should be worth seconds. A pool outlives one `run`, so its actors keep what they
loaded: `tell` reaches those that are there, and `greet_with` is what an actor that starts later is sent first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import cloudpickle

from raydpo.errors import Cause, HangError, ResourceError, StorageError, WorkerError
from raydpo.redaction import redacting_logger
from raydpo.runtime.backend import ActorDied, CallFailed
from raydpo.runtime.failure import Death, Failure, error_of
from raydpo.runtime.gauges import gauge
from raydpo.runtime.news import News
from raydpo.runtime.place import Place, thread_variables
from raydpo.runtime.placement import ANYWHERE, Placement
from raydpo.runtime.pool_actor import PoolActor, PoolWorker
from raydpo.runtime.pool_items import PoolItems, gone_on
from raydpo.runtime.resources import Demand, amounts, count_fitting
from raydpo.runtime.sessions import current, lends_cpus, patience, unseen_storage
from raydpo.runtime.silence import Watched, frames_of, silences
from raydpo.runtime.stops import requested

_log = redacting_logger(__name__)

HANG_TIMEOUT_S = 1800.0
"""Of pools that nobody gives a deadline."""
_WAIT_S = 5.0
"""Between two looks at places and at the clock."""


class Pool:
    """Actors that stand until `close`. Arguments and errors as in `run_pool`; actors start when there is work for them.

    cpus, gpus: what is reserved for each. threads: of each, by default as many as its CPUs; an actor that reserves
    nothing shares the CPUs with those of other roles. depth: gets (items that wait, items in work) as they
    change. hear: gets (index of the item, event) of what a worker has `News`; workers then answer with an iterator, whose last
    value is the result.
    """

    def __init__(
        self,
        name: str,
        make_worker: Callable[[], Callable[[Any], Any]],
        *,
        num_workers: int,
        cpus: float,
        gpus: float = 0.0,
        max_retries: int = 0,
        hang_timeout_s: float = HANG_TIMEOUT_S,
        hang_key: str = "hang_timeout_s",
        lighter: Callable[[Any], Any] | None = None,
        threads: float | None = None,
        own_process: bool = False,
        preload: Sequence[str] = (),
        hear: Callable[[int, Any], None] | None = None,
        placement: Placement = ANYWHERE,
        placed: Callable[[Place], None] | None = None,
        depth: Callable[[int, int], None] | None = None,
    ) -> None:
        self._demand = Demand(name, num_workers, 0 if lends_cpus() else cpus, gpus, placement)
        self._name, self._num_workers, self._max_retries = name, num_workers, max_retries
        self._hang_timeout_s, self._hang_key, self._lighter = hang_timeout_s, hang_key, lighter
        self._items = PoolItems((), max_retries, lighter)
        self._threads = cpus if threads is None else threads
        self._actors = current().actors(num_workers, own_process=own_process, preload=preload)
        self._preload = preload
        self._payload = self._actors.share(cloudpickle.dumps(make_worker))
        self._greeting: Any = None
        self._hear, self._placed, self._depth = hear, placed, depth
        self._is_closed = False
        self._calls: dict[Any, PoolWorker] = {}
        self._workers: dict[int, PoolWorker] = {}
        self._waiting = patience().for_places()

    def run(self, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """(index, result) of each item, in the order they finish. One run at a time; to be read to its end.

        Once a signal has asked the run to end, no item is handed out any more: those in work are the last.
        """
        self.begin(items)
        while self.num_unfinished:
            yield from self.step()

    def begin(self, items: Sequence[Any], *, are_there: bool = True) -> None:
        """Begin a run whose steps the caller takes. are_there: whether all items wait now, or each once it is `put`."""
        self._items = PoolItems(items, self._max_retries, self._lighter, are_there=are_there)
        self._begin_waiting()

    def put(self, *indices: int) -> None:
        """These items of the run are there."""
        for index in indices:
            self._items.put(index)
        self._begin_waiting()

    def drop_waiting(self) -> None:
        """Items that nobody began are not wanted any more."""
        self._items.drop_waiting()

    def _begin_waiting(self) -> None:
        for worker in [worker for worker in self._workers.values() if worker.state == "ready"]:
            worker.was_idle = True
            self._feed(worker)
        self._start_missing(min(self._num_workers, self._items.num_unfinished))

    @property
    def num_unfinished(self) -> int:
        """Items of the run without a result; those that nobody began are none of them once a signal came."""
        if requested() and self._items.num_waiting:
            self._items.drop_waiting()
        return self._items.num_unfinished

    def step(self, timeout_s: float = _WAIT_S) -> Iterator[tuple[int, Any]]:
        """(index, result) of items that ended; waits for the first news of an actor, at most `timeout_s`."""
        for worker, answer in self._answers(timeout_s):
            if worker.state != "working":
                self._advance(worker, answer)
                continue
            done = answer if worker.takes_several else [(worker.items[0], answer)]
            for index, _ in done:
                worker.items.remove(index)
                self._items.finish_one()
            worker.state, worker.was_idle = "ready", False
            self._feed(worker)
            yield from done
        if not self._items.num_unfinished:
            self._show()

    def tell(self, message: Any) -> list[Any]:
        """Give `message` to every actor that there is; their answers. Between two runs.

        An actor that dies over it is replaced when there is work again; that message must then be in the greeting.
        """
        self._settle()
        stored = self._actors.share(message)
        for worker in self._workers.values():
            worker.state = "told"
            self._ask(worker, "work", stored)
        answers = []
        while any(worker.state == "told" for worker in self._workers.values()):
            for worker, answer in self._answers():
                worker.state = "ready"
                answers.append(answer)
        return answers

    def start(self) -> None:
        """Start all actors and wait until they are ready."""
        self._start_missing(self._num_workers)
        self._settle()

    def _settle(self) -> None:
        """Wait until every actor is ready or dead."""
        while any(worker.state != "ready" for worker in self._workers.values()):
            for worker, answer in self._answers():
                self._advance(worker, answer)
            if not self._waiting.goes_on(self._lacking):
                self._give_up_unplaced()

    def _give_up_unplaced(self) -> None:
        """Go on without the actors that found no place, if there are others."""
        placed = [worker for worker in self._workers.values() if worker.place is not None]
        for call, worker in list(self._calls.items()) if placed else []:
            if worker.place is None:
                _log.warning("%s found no place; the others work without it.", self._describe(worker))
                self._actors.kill(worker.actor)
                del self._calls[call], self._workers[worker.number]

    def greet_with(self, message: Any) -> None:
        """Let every actor that starts from now on take this message before any item (None: no message)."""
        self._greeting = message

    def close(self) -> None:
        """End all actors for good. Whoever waits for them in another thread gets a WorkerError."""
        self._is_closed = True
        self.stop()

    def stop(self) -> None:
        """End all actors. When there is work again, others start."""
        workers = list(self._workers.values())  # another thread may be burying one
        self._workers.clear()
        self._calls.clear()
        for worker in workers:
            self._actors.kill(worker.actor)

    def _answers(self, timeout_s: float = _WAIT_S) -> Iterator[tuple[PoolWorker, Any]]:
        """Finished calls of living workers; the dead are buried, errors raised."""
        if self._is_closed:
            raise WorkerError(f"{self._name}: the actors were ended while there was work for them.", Cause.ENDED)
        calls = list(self._calls)
        if not calls:
            raise WorkerError(f"{self._name}: no actor is left for the work. {self._remedy()}", Cause.UNKNOWN)
        finished = self._wait(calls, timeout_s)
        if not finished:
            self._check_placement()
        for call in finished:
            worker = self._calls.pop(call, None)
            if worker is None:  # the pool was stopped meanwhile
                continue
            try:
                is_aloud = self._hear is not None and worker.state == "working"
                answer = self._actors.next_event(call) if is_aloud else self._actors.result(call)
            except CallFailed as error:
                raise WorkerError(f"{self._describe(worker)} failed: {error}") from error
            except ActorDied as error:
                self._bury(worker, error.death)
                continue
            if isinstance(answer, Failure):
                raise error_of(answer, self._describe(worker))
            if isinstance(answer, News):
                self._calls[call], worker.silent_s = worker, 0.0
                if self._hear is not None and worker.items:
                    self._hear(worker.items[0], answer.event)
                continue
            yield worker, answer
        self._check_silence()

    def _show(self) -> None:
        placed = [worker for worker in self._workers.values() if worker.place is not None]
        busy = sum(worker.state == "working" for worker in placed)
        num_waiting, num_in_work = self._items.num_waiting, sum(len(worker.items) for worker in placed)
        if self._depth is not None:
            self._depth(num_waiting, num_in_work)
        gauge("raydpo_queue_items", num_waiting, self._name)
        gauge("raydpo_items_in_work", num_in_work, self._name)
        gauge("raydpo_workers", len(placed), self._name)
        gauge("raydpo_busy_share", busy / max(1, len(placed)), self._name)

    def _wait(self, calls: list[Any], timeout_s: float) -> list[Any]:
        """Finished ones of `calls`. Time that the caller spends elsewhere counts for nobody's silence."""
        self._show()
        started_s = time.monotonic()
        finished = self._actors.wait(calls, min(timeout_s, self._hang_timeout_s))
        self._was_waited_for(time.monotonic() - started_s)
        return finished

    def _was_waited_for(self, waited_s: float) -> None:
        for worker in list(self._calls.values()):  # another thread may be stopping the pool
            worker.silent_s += waited_s

    @property
    def is_in_process(self) -> bool:
        """Whether its actor is in this process, and works while a step is taken."""
        return self._actors.is_shared

    @staticmethod
    def wait_for_any(pools: Sequence[Pool], timeout_s: float = _WAIT_S) -> None:
        """Wait until an actor of any of `pools` has something to say; not at all for one that is in this process beside
        others, which works when its pool is stepped."""
        calls = [call for pool in pools for call in list(pool._calls)]
        if not all(pool._calls for pool in pools) or len({type(pool._actors) for pool in pools}) > 1:
            return
        started_s = time.monotonic()
        pools[0]._actors.wait(calls, min(timeout_s, *(pool._hang_timeout_s for pool in pools), _WAIT_S))
        for pool in pools:
            pool._was_waited_for(time.monotonic() - started_s)

    def _check_silence(self) -> None:
        """End those that are silent beyond the deadline. Raises HangError when that was once too often."""
        calls = {worker.number: call for call, worker in list(self._calls.items()) if self._is_overdue(worker)}
        if not calls:
            return
        overdue = {number: self._calls[call] for number, call in calls.items()}
        for number, silent_s in silences(self._actors, _watched(overdue)).items():
            overdue[number].silent_s = silent_s
        hung = {number: worker for number, worker in overdue.items() if self._is_overdue(worker)}
        for number, frames in frames_of(self._actors, _watched(hung)).items():
            worker, call = hung[number], calls[number]
            if self._actors.wait([call], 0.0):  # it answered meanwhile
                continue
            self._calls.pop(call, None)
            text = (
                f"it gave neither a result nor a sign of life for {worker.silent_s:.0f} s and was ended; the deadline is "
                f"{self._hang_key}: {self._hang_timeout_s:g}, to be raised if its work takes longer"
            )
            self._bury(worker, Death(Cause.HUNG, text), f"\nWorker {number} was at\n{frames}")

    def _is_overdue(self, worker: PoolWorker) -> bool:
        return worker.place is not None and worker.silent_s >= self._hang_timeout_s

    def _start_missing(self, wanted: int) -> None:
        free = (number for number in range(self._num_workers) if number not in self._workers)
        for number in list(free)[: max(0, wanted - len(self._workers))]:
            self._start_worker(number)

    def _start_worker(self, number: int) -> None:
        seat = self._actors.seat(self._demand, number)
        worker = PoolWorker(number, self._actors.start(PoolActor, self._demand, seat))
        self._workers[number] = worker
        self._ask(worker, "place", self._actors.locate, self._actors.is_shared)
        self._waiting = patience().for_places()
        if self._is_closed:  # by another thread, which may have ended the others before this one was there
            self.stop()

    def _advance(self, worker: PoolWorker, answer: Any) -> None:
        """Placed -> prepare; prepared -> greeted, if there is a greeting; then the first item."""
        if worker.state == "placing":
            if problem := unseen_storage(answer[0].node_id):
                self._turn_away(worker, answer[0].node_id, problem)
                return
            (worker.place, worker.stacks), worker.state = answer, "preparing"
            if self._placed is not None:
                self._placed(answer[0])
            variables = thread_variables(self._threads, self._demand.gpus)
            self._ask(worker, "prepare", self._payload, variables, self._preload)
            return
        if worker.state == "preparing":
            worker.takes_several = bool(answer) and self._hear is None
            if self._greeting is not None:
                worker.state = "greeting"
                self._ask(worker, "work", self._greeting)
                return
        worker.state = "ready"
        self._feed(worker)

    def _turn_away(self, worker: PoolWorker, node_id: str, problem: str) -> None:
        """Go on without a node that lacks the storage. Raises StorageError where no other one has room."""
        self._actors.kill(worker.actor)
        self._workers.pop(worker.number, None)
        placement = self._demand.placement.without(node_id)
        demand = None if placement is None else replace(self._demand, placement=placement)
        if demand is None or not count_fitting(demand, current().nodes()):
            raise StorageError(problem)
        self._demand = demand
        _log.warning("%s: that node gets no work. %s", self._name, problem)
        self._start_worker(worker.number)

    def _ask(self, worker: PoolWorker, method: str, *arguments: Any) -> None:
        worker.silent_s = 0.0
        call = self._actors.call(worker.actor, method, *arguments, hang_timeout_s=self._hang_timeout_s)
        self._calls[call] = worker

    def _feed(self, worker: PoolWorker) -> None:
        taken = self._items.take() if self._may_take(worker) else None
        if taken is None and not worker.items:
            return
        worker.items += [] if taken is None else [taken]
        worker.state = "working"
        item = None if taken is None else self._items.at(taken)
        if worker.takes_several:
            numbered = None if taken is None else (taken, item)
            self._ask(worker, "work_several", numbered, self._may_take(worker))
        elif self._hear is None:
            self._ask(worker, "work", item)
        else:
            worker.silent_s, deadline_s = 0.0, self._hang_timeout_s
            stream = self._actors.stream(worker.actor, "work_aloud", item, max_unread=None, hang_timeout_s=deadline_s)
            self._calls[stream] = worker

    def _may_take(self, worker: PoolWorker) -> bool:
        """Whether there is another item for it: of several no more than its share, so that none is without work at the end."""
        share = -(-self._items.num_unfinished // max(1, len(self._workers))) if worker.takes_several else 1
        return bool(self._items.num_waiting) and len(worker.items) < share and self._items.goes_beside(worker.items)

    def _bury(self, worker: PoolWorker, death: Death, frames: str = "") -> None:
        """A dead worker's items go to others, within bounds. frames: where it was, on lines of their own."""
        self._actors.kill(worker.actor)
        if self._workers.pop(worker.number, None) is None:
            return  # the pool was stopped meanwhile
        is_hang = death.cause is Cause.HUNG
        message = f"{self._describe(worker)} {'hung' if is_hang else 'died'}: {death.text}."
        if not worker.items and not self._items.num_waiting:
            _log.warning("%s%s", message, frames)
            return
        if not worker.items:
            if not self._items.survives_start():
                raise self._error(f"{message} This was before it took an item.", death, frames)
            _log.warning("%s Another one starts in its place.%s", message, frames)
        elif worker.was_idle and not is_hang:  # the item need not be the cause
            self._items.put_back(worker.items)
            _log.warning("%s %s.", message, gone_on(worker.items))
        else:
            deaths, text = self._items.retry(worker.items, death.cause)
            if not text:
                over = "this item" if len(worker.items) == 1 else "one of these items"
                lost = f"{deaths} workers died of or hung over {over}, and no more than {self._max_retries} retries"
                raise self._error(f"{message} {lost} are allowed.", death, frames)
            _log.warning("%s %s%s", message, text, frames)
        for idle in [other for other in self._workers.values() if other.state == "ready"]:
            self._feed(idle)
        if self._items.num_waiting:
            self._start_worker(worker.number)

    def _error(self, message: str, death: Death, frames: str) -> WorkerError:
        if death.cause is Cause.HUNG:
            return HangError(f"{message} {self._actors.hint[0].upper()}{self._actors.hint[1:]}.{frames}")
        return WorkerError(f"{message} {self._remedy()}", death.cause)

    def _check_placement(self) -> None:
        is_waiting = all(worker.place is None for worker in self._workers.values())
        if is_waiting and not self._waiting.goes_on(self._lacking):
            waited_s = self._waiting.waited_s
            raise ResourceError(
                f"{self._name}: no worker got its {amounts(self._demand.each) or 'process'} within {waited_s:.0f} s. "
                f"Free in the cluster now: {self._actors.free()}. Other jobs hold the rest, or nodes were lost. Wait for "
                "them, or lower what each worker takes."
            )

    def _lacking(self) -> str:
        return f"{self._name}: waiting for a place; free in the cluster now: {self._actors.free()}"

    def _describe(self, worker: PoolWorker) -> str:
        where = f" ({worker.place})" if worker.place else ""
        items = f", {self._items.shown(worker.items)}" if worker.items else ""
        return f"{self._name} worker {worker.number}{where}{items}"

    def _remedy(self) -> str:
        return f"If it was memory, run fewer workers or smaller batches; {self._actors.hint}."


def _watched(workers: Mapping[int, PoolWorker]) -> Watched:
    return {
        number: (worker.place, worker.stacks, worker.silent_s)
        for number, worker in workers.items()
        if worker.place is not None
    }
