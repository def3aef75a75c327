"""A gang of ranks that live and die together, and stream what they yield to the driver.

What comes in: a generator function of a RankContext. What goes out: (rank, event) in each rank's order, or one error
that names the ranks and the cause.
Decision: all ranks get their place at once (placement group), or none. The first failure ends every rank; the driver
then waits a few seconds for the errors of the others, and longer where all that is known is a peer's "connection
closed", because that often arrives before the news of the death that caused it. Price: a failing run ends those seconds
later.
"""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from os import environ
from typing import Any, TypeVar

import cloudpickle

from raydpo.errors import Cause, HangError, StorageError, WorkerError
from raydpo.runtime.backend import ActorDied, Actors, CallFailed
from raydpo.runtime.failure import Failure, failure_of
from raydpo.runtime.place import PLACEMENT_TIMEOUT_S, Place, load_function, rank_threads
from raydpo.runtime.placement import ANYWHERE, Placement
from raydpo.runtime.rank_failures import RankFailure, verdict
from raydpo.runtime.resources import Demand
from raydpo.runtime.sessions import current, patience, unseen_storage
from raydpo.runtime.stacks import Stacks, flight_pipe, offer_stacks
from raydpo.runtime.stops import left_to_the_driver

T = TypeVar("T")

_GRACE_S = 4.0
"""How long the other ranks may still report after the first failure."""
_CAUSE_S = 30.0
"""How long they may while every failure looks like the loss of another rank."""


@dataclass(frozen=True)
class RankContext:
    """Who a rank is.

    rank, num_ranks: its number in the gang, from 0, and how many there are.
    local_rank, local_size: the same among the ranks of its own node.
    use_gpu: whether it has one.
    """

    rank: int
    num_ranks: int
    local_rank: int
    local_size: int
    use_gpu: bool


def run_gang(
    name: str,
    function: Callable[[RankContext], Iterator[T]],
    *,
    num_ranks: int,
    cpus: float,
    gpus: float = 0.0,
    hang_timeout_s: float,
    max_unread: int | None = None,
    preload: Sequence[str] = (),
    placement: Placement = ANYWHERE,
    placed: Callable[[Sequence[Place]], None] | None = None,
) -> Generator[tuple[int, T], None, None]:
    """Run `function(context)`, a generator, on `num_ranks` actors; yield (rank, event) as events come.

    function: module-level function or partial. The variables of torch.distributed (RANK, WORLD_SIZE, LOCAL_RANK,
        LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT) and of threads are set before its module is imported.
    cpus, gpus: reserved for each rank. placement: on which nodes.
    hang_timeout_s: longest time without an event of a rank (events are the heartbeat).
    max_unread: events that a rank may be ahead of the reader before it waits (backpressure); None: no bound.
    preload: modules that each rank imports anyway; local processes share one import of them, which comes before the
        variables of threads (torch is told its number of threads afterwards).
    placed: gets the places of the ranks, in their order, before anything of theirs runs.

    Closing the iterator ends all ranks.
    Raises the RaydpoError that the failing ranks raised, if it is one class; else WorkerError with the errors and
    their ranks; HangError with the silent ranks and where they are; ResourceError when no place is found; StorageError
    when one is on a node that came late and does not share what `check_storage` proved.
    """
    actors = current().actors(num_ranks, own_process=False, preload=preload)
    gang = _Gang(Demand(name, num_ranks, cpus, gpus, placement), actors, hang_timeout_s)
    try:
        gang.place()
        if problems := list(filter(None, map(unseen_storage, {place.node_id: None for place in gang.places}))):
            raise StorageError(problems)
        if placed is not None:
            placed(gang.places)
        gang.launch(cloudpickle.dumps(function), preload, max_unread)
        yield from gang.events()
    finally:
        gang.close()


class RankActor:
    """Runs in its own process: place, prepare, then run as a stream."""

    def place(self, locate: Callable[[], Place]) -> Place:
        """First call; answers as soon as the rank has its CPUs and GPUs."""
        return locate()

    def free_port(self) -> int:
        """A port for the rendezvous, below the range from which the kernel gives out ports by itself."""
        for port in random.SystemRandom().sample(range(20000, 32000), 200):
            with socket.socket() as probe, suppress(OSError):
                probe.bind(("", port))
                return port
        raise OSError("200 ports between 20000 and 32000 were tried, and all are taken")

    def prepare(
        self, payload: bytes, variables: dict[str, str], preload: Sequence[str], is_shared: bool
    ) -> Failure | Stacks | None:
        """Set the environment, import the function; a hanging rank can be asked for its stack from here on.

        is_shared: the process is the driver's too, which can be asked for no stack of one rank.
        """
        self._is_shared = is_shared
        try:
            self._function = load_function(payload, variables, preload)
        except Exception as error:  # noqa: BLE001 - whatever an import raises travels to the driver as a record
            return failure_of(error)
        return None if is_shared else offer_stacks()

    def run(self, context: RankContext) -> Iterator[Any]:
        """Stream the events; an exception becomes the last one."""
        with nullcontext() if self._is_shared else left_to_the_driver():
            try:
                yield from self._function(context)
            except Exception as error:  # noqa: BLE001 - as above
                yield failure_of(error)


@dataclass
class _Rank:
    actor: Any
    bundle: int
    place: Place | None = None
    rank: int = -1
    stream: Any = None
    stacks: Stacks | None = None
    num_events: int = 0
    silent_s: float = 0.0
    done: bool = False


class _Gang:
    def __init__(self, demand: Demand, actors: Actors, hang_timeout_s: float) -> None:
        self._demand, self._name, self._num_ranks = demand, demand.role, demand.workers
        self._actors, self._hang_timeout_s = actors, hang_timeout_s
        self._places: Sequence[Any] = ()
        self._ranks: list[_Rank] = []

    def place(self) -> None:
        """Reserve all places, start the actors, and number them node by node."""
        self._places = self._actors.reserve(self._demand, patience())
        for index, place in enumerate(self._places):
            actor = self._actors.start(RankActor, self._demand, place)
            self._ranks.append(_Rank(actor, index))
        for member, found in zip(self._ranks, self._ask("place", lambda _: (self._actors.locate,)), strict=True):
            member.place = found
        nodes = list(dict.fromkeys(_placed(member).node_id for member in self._ranks))
        self._ranks.sort(key=lambda member: (nodes.index(_placed(member).node_id), member.bundle))
        for rank, member in enumerate(self._ranks):
            member.rank = rank

    @property
    def places(self) -> list[Place]:
        """Of each rank, in their order."""
        return [_placed(member) for member in self._ranks]

    def launch(self, payload: bytes, preload: Sequence[str], max_unread: int | None) -> None:
        """Give every rank its environment, then start the streams."""
        node_of = [place.node_id for place in self.places]
        contexts = [
            RankContext(rank, self._num_ranks, node_of[:rank].count(node), node_of.count(node), self._demand.gpus > 0)
            for rank, node in enumerate(node_of)
        ]
        shared = self._shared_variables(single_node=len(set(node_of)) == 1)
        variables = [shared | self._rank_variables(member, context) for member, context in self._with(contexts)]
        stored, is_shared = self._actors.share(payload), self._actors.is_shared
        prepared = self._ask("prepare", lambda member: (stored, variables[member.rank], preload, is_shared))
        failures = [
            RankFailure(member.rank, str(member.place), answer)
            for member, answer in self._with(prepared)
            if isinstance(answer, Failure)
        ]
        if failures:
            raise verdict(self._name, failures)
        for member, context in self._with(contexts):
            member.stacks = prepared[member.rank]
            member.stream = self._actors.stream(
                member.actor, "run", context, max_unread=max_unread, hang_timeout_s=self._hang_timeout_s
            )

    def _with(self, values: Sequence[Any]) -> Iterator[tuple[_Rank, Any]]:
        """Each rank with its own of `values`."""
        return zip(self._ranks, values, strict=True)

    def events(self) -> Iterator[tuple[int, Any]]:
        while waiting := [member for member in self._ranks if not member.done]:
            for member in self._wait(waiting, timeout_s=min(5.0, self._hang_timeout_s)):
                event = self._next(member)
                if isinstance(event, RankFailure):
                    failures = [event]
                    yield from self._last_words(failures)
                    raise verdict(self._name, failures)
                if not member.done:
                    yield member.rank, event
            self._check_silence()

    def close(self) -> None:
        for member in self._ranks:
            self._actors.kill(member.actor)
        self._actors.release(self._places)

    def _ask(self, method: str, arguments: Callable[[_Rank], tuple[Any, ...]]) -> list[Any]:
        """One call to every rank; a rank that dies over it is an error."""
        calls = [self._actors.call(member.actor, method, *arguments(member)) for member in self._ranks]
        return [self._answer(member, pending) for member, pending in self._with(calls)]

    def _answer(self, member: _Rank, pending: Any) -> Any:
        try:
            return self._actors.result(pending, PLACEMENT_TIMEOUT_S)
        except (ActorDied, CallFailed) as error:
            who = f"rank {member.rank}" if member.rank >= 0 else f"the process for bundle {member.bundle}"
            where = f" ({member.place})" if member.place else ""
            cause = error.death.cause if isinstance(error, ActorDied) else Cause.RAISED
            rank = member.rank if member.rank >= 0 else None
            raise WorkerError(f"{self._name}: {who}{where} died at its start: {error}.", cause, rank) from error

    def _shared_variables(self, *, single_node: bool) -> dict[str, str]:
        first = self._ranks[0]
        variables = rank_threads(self._demand.cpus, self._demand.gpus) | {
            "WORLD_SIZE": str(self._num_ranks),
            "MASTER_ADDR": "127.0.0.1" if single_node else _placed(first).host,
            "MASTER_PORT": str(self._answer(first, self._actors.call(first.actor, "free_port"))),
        }
        loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
        if single_node and loopback and "GLOO_SOCKET_IFNAME" not in environ:
            # gloo looks up the host's name otherwise, which need not resolve, and listens on the outer interface.
            variables["GLOO_SOCKET_IFNAME"] = loopback
        return variables

    def _rank_variables(self, member: _Rank, context: RankContext) -> dict[str, str]:
        variables = {"TORCH_NCCL_DEBUG_INFO_PIPE_FILE": flight_pipe(_placed(member).pid)} if self._demand.gpus else {}
        if context.local_size < context.num_ranks:
            variables |= _placed(member).outward
        return variables | {
            "RANK": str(context.rank),
            "LOCAL_RANK": _placed(member).device if self._demand.gpus else str(context.local_rank),
            "LOCAL_WORLD_SIZE": str(context.local_size),
            "LOCAL_SIZE": str(context.local_size),
        }

    def _wait(self, members: Sequence[_Rank], *, timeout_s: float) -> list[_Rank]:
        """Ranks with an event. Time that the caller spends elsewhere counts for nobody's silence."""
        streams = {member.stream: member for member in members}
        started_s = time.monotonic()
        ready = self._actors.wait(list(streams), timeout_s)
        waited_s = time.monotonic() - started_s
        speaking = [streams[stream] for stream in ready]
        for member in members:
            member.silent_s = 0.0 if member in speaking else member.silent_s + waited_s
        return speaking

    def _next(self, member: _Rank) -> Any:
        """The next event of a rank that has one, or a RankFailure; marks the rank done at its end."""
        try:
            event = self._actors.next_event(member.stream)
        except StopIteration:
            member.done = True
            return None
        except ActorDied as error:
            member.done = True
            return RankFailure(member.rank, str(member.place), error.death)
        member.num_events += 1
        if isinstance(event, Failure):
            member.done = True
            return RankFailure(member.rank, str(member.place), event)
        return event

    def _last_words(self, failures: list[RankFailure]) -> Iterator[tuple[int, Any]]:
        """What the other ranks yield within the grace time; their failures are added to the first."""
        deadline_s = time.monotonic() + (_CAUSE_S if failures[0].is_collateral else _GRACE_S)
        while waiting := [member for member in self._ranks if not member.done]:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                break
            for member in self._wait(waiting, timeout_s=left_s):
                event = self._next(member)
                if isinstance(event, RankFailure):
                    failures.append(event)
                    if not event.is_collateral:
                        deadline_s = min(deadline_s, time.monotonic() + _GRACE_S)
                elif not member.done:
                    yield member.rank, event

    def _check_silence(self) -> None:
        silent = [member for member in self._ranks if not member.done and member.silent_s >= self._hang_timeout_s]
        if not silent:
            return
        frames = self._actors.stacks({m.rank: (_placed(m), m.stacks) for m in self._ranks if not m.done and m.stacks})
        waiting = [member for member in silent if _in_collective(frames.get(member.rank, ""))]
        behind = [member for member in silent if member not in waiting] or silent
        lines = [
            f"{self._name}: {_named(behind)} yielded nothing for {max(m.silent_s for m in behind):.0f} s; the deadline "
            f"(hang_timeout_s) is {self._hang_timeout_s:g} s. All ranks were stopped."
        ]
        if waiting and behind != silent:
            lines.append(f"{_named(waiting)} only waited for them in a collective operation.")
        for member in silent:
            where = frames.get(member.rank) or "  (its stack could not be read)"
            lines.append(f"rank {member.rank} ({member.place}), after {member.num_events} events, was at\n{where}")
        raise HangError("\n".join(lines), rank=behind[0].rank)


def _placed(member: _Rank) -> Place:
    assert member.place is not None
    return member.place


def _in_collective(frames: str) -> bool:
    return "distributed_c10d" in frames or "/deepspeed/comm/" in frames


def _named(members: Sequence[_Rank]) -> str:
    numbers = ", ".join(str(member.rank) for member in members)
    return f"rank {numbers}" if len(members) == 1 else f"ranks {numbers}"
