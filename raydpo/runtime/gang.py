"""A gang of ranks that live and die together, run one function after the other, and stream what it yields to the driver.

What comes in: generator functions of a RankContext. What goes out: (rank, event) in each rank's order, or one error that names
the ranks and the cause. Decision: all ranks get their place at once (placement group), or none, and keep it until the gang is
closed; the first failure ends every rank (`gang_run`). A function that is left before its end ends them, too: nobody knows in
which collective they are.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Generator, Iterator, Sequence
from os import environ
from typing import Any, TypeVar

import cloudpickle

from raydpo.errors import Cause, StorageError, WorkerError
from raydpo.runtime.backend import ActorDied, Backend, CallFailed
from raydpo.runtime.failure import Failure
from raydpo.runtime.gang_run import GangMember, GangRun
from raydpo.runtime.place import PLACEMENT_TIMEOUT_S, Place, rank_threads
from raydpo.runtime.placement import ANYWHERE, Placement
from raydpo.runtime.rank_actor import RankActor, RankContext
from raydpo.runtime.rank_failures import RankFailure, verdict
from raydpo.runtime.resources import Demand
from raydpo.runtime.sessions import current, patience, unseen_storage
from raydpo.runtime.stacks import flight_pipe

T = TypeVar("T")


def run_gang(
    name: str,
    function: Callable[[RankContext], Iterator[T]],
    *,
    max_unread: int | None = None,
    placed: Callable[[Sequence[Place]], None] | None = None,
    **gang: Any,
) -> Generator[tuple[int, T], None, None]:
    """Run `function(context)`, a generator, on ranks that end with it; yield (rank, event) as events come.

    max_unread: as of `Gang.run`. placed: as of `Gang`. gang: its other arguments. Closing the iterator ends all ranks.
    Raises what `Gang` and `Gang.run` raise.
    """
    ranks = Gang(name, placed=placed, keeps=False, **gang)
    try:
        yield from ranks.run(function, max_unread)
    finally:
        ranks.close()


class Gang:
    """Ranks that stand until `close`, or until a function fails. They are placed when there is a function to run.

    num_ranks: how many actors. cpus, gpus: reserved for each. placement: on which nodes.
    hang_timeout_s: longest time without an event of a rank (events are the heartbeat).
    preload: modules that each rank imports anyway; local processes share one import of them, which comes before the
        variables of threads (torch is told its number of threads afterwards).
    placed: gets the places of the ranks, in their order, before anything of theirs runs.
    keeps: whether a function finds what the one before it kept.
    backend: the session that the ranks live in; None: the one that was opened last.
    """

    def __init__(
        self,
        name: str,
        *,
        num_ranks: int,
        cpus: float,
        gpus: float = 0.0,
        hang_timeout_s: float,
        preload: Sequence[str] = (),
        placement: Placement = ANYWHERE,
        placed: Callable[[Sequence[Place]], None] | None = None,
        keeps: bool = True,
        backend: Backend | None = None,
    ) -> None:
        self._demand, self._name, self.num_ranks = Demand(name, num_ranks, cpus, gpus, placement), name, num_ranks
        self._actors = (backend or current()).actors(num_ranks, own_process=False, preload=preload)
        self._hang_timeout_s, self._preload, self._placed, self._keeps = hang_timeout_s, preload, placed, keeps
        self._places: Sequence[Any] = ()
        self._members: list[GangMember] = []
        self.is_closed = False
        self.num_runs = 0

    @property
    def places(self) -> list[Place]:
        """Of each rank, in their order; none before the first function."""
        return [member.placed for member in self._members]

    def run(
        self, function: Callable[[RankContext], Iterator[T]], max_unread: int | None = None
    ) -> Generator[tuple[int, T], None, None]:
        """Run `function(context)`, a generator, on every rank; yield (rank, event) as events come. One at a time.

        function: module-level function or partial. The variables of torch.distributed (RANK, WORLD_SIZE, LOCAL_RANK,
            LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT) and of threads are set before its module is imported.
        max_unread: events that a rank may be ahead of the reader before it waits (backpressure); None: no bound.

        Raises the RaydpoError that the failing ranks raised, if it is one class; else WorkerError with the errors and
        their ranks, also for one that died since the last function; HangError with the silent ranks and where they are;
        ResourceError when no place is found; StorageError when one is on a node that came late and does not share what
        `check_storage` proved. After that, or when the iterator is closed, the gang is closed.
        """
        try:
            if not self._members:
                self._place()
            self._launch(cloudpickle.dumps(function), max_unread)
            yield from GangRun(self._name, self._members, self._actors, self._hang_timeout_s).events()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all ranks. Closing a closed one is fine."""
        self.is_closed = True
        members, places, self._members, self._places = self._members, self._places, [], ()
        for member in members:
            self._actors.kill(member.actor)
        self._actors.release(places)

    def _place(self) -> None:
        """Reserve all places, start the actors, and number them node by node."""
        assert not self.is_closed, "a gang that was closed runs nothing"
        self._places = self._actors.reserve(self._demand, patience())
        for index, place in enumerate(self._places):
            self._members.append(GangMember(self._actors.start(RankActor, self._demand, place), index))
        for member, found in zip(self._members, self._ask("place", lambda _: (self._actors.locate,)), strict=True):
            member.place = found
        nodes = list(dict.fromkeys(member.placed.node_id for member in self._members))
        self._members.sort(key=lambda member: (nodes.index(member.placed.node_id), member.bundle))
        for rank, member in enumerate(self._members):
            member.rank = rank
        if problems := list(filter(None, map(unseen_storage, nodes))):
            raise StorageError(problems)
        if self._placed is not None:
            self._placed(self.places)

    def _launch(self, payload: bytes, max_unread: int | None) -> None:
        """Give every rank the function, before the first one its environment, then start the streams."""
        contexts = self._contexts()
        is_first, self.num_runs = self.num_runs == 0, self.num_runs + 1
        variables, preload = (self._variables(contexts), self._preload) if is_first else ([{}] * self.num_ranks, ())
        stored, is_shared = self._actors.share(payload), self._actors.is_shared
        prepared = self._ask("prepare", lambda member: (stored, variables[member.rank], preload, is_shared))
        failures = [
            RankFailure(member.rank, str(member.place), answer)
            for member, answer in zip(self._members, prepared, strict=True)
            if isinstance(answer, Failure)
        ]
        if failures:
            raise verdict(self._name, failures)
        for member, context in zip(self._members, contexts, strict=True):
            member.stacks = prepared[member.rank]
            stream = self._actors.stream(
                member.actor, "run", context, max_unread=max_unread, hang_timeout_s=self._hang_timeout_s
            )
            member.begin(stream)

    def _contexts(self) -> list[RankContext]:
        nodes, kept = [place.node_id for place in self.places], dict[str, Any]() if self._keeps else None
        return [
            RankContext(rank, self.num_ranks, nodes[:rank].count(node), nodes.count(node), self._demand.gpus > 0, kept)
            for rank, node in enumerate(nodes)
        ]

    def _ask(self, method: str, arguments: Callable[[GangMember], tuple[Any, ...]]) -> list[Any]:
        """One call to every rank; a rank that dies over it is an error."""
        calls = [self._actors.call(member.actor, method, *arguments(member)) for member in self._members]
        return [self._answer(member, pending) for member, pending in zip(self._members, calls, strict=True)]

    def _answer(self, member: GangMember, pending: Any) -> Any:
        try:
            return self._actors.result(pending, PLACEMENT_TIMEOUT_S)
        except (ActorDied, CallFailed) as error:
            who = f"rank {member.rank}" if member.rank >= 0 else f"the process for bundle {member.bundle}"
            where = f" ({member.place})" if member.place else ""
            was_idle = self.num_runs > 1
            when = "while it stood idle" if was_idle else "at its start"
            cause = error.death.cause if isinstance(error, ActorDied) else Cause.RAISED
            rank = member.rank if member.rank >= 0 else None
            raise WorkerError(
                f"{self._name}: {who}{where} died {when}: {error}.", cause, rank, was_idle=was_idle
            ) from error

    def _variables(self, contexts: Sequence[RankContext]) -> list[dict[str, str]]:
        """Of torch.distributed and of threads, for each rank."""
        is_single = contexts[0].local_size == self.num_ranks
        shared = self._shared_variables(single_node=is_single)
        pairs = zip(self._members, contexts, strict=True)
        return [shared | self._rank_variables(member, context) for member, context in pairs]

    def _shared_variables(self, *, single_node: bool) -> dict[str, str]:
        first = self._members[0]
        variables = rank_threads(self._demand.cpus, self._demand.gpus) | {
            "WORLD_SIZE": str(self.num_ranks),
            "MASTER_ADDR": "127.0.0.1" if single_node else first.placed.host,
            "MASTER_PORT": str(self._answer(first, self._actors.call(first.actor, "free_port"))),
        }
        loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
        if single_node and loopback and "GLOO_SOCKET_IFNAME" not in environ:
            # gloo looks up the host's name otherwise, which need not resolve, and listens on the outer interface.
            variables["GLOO_SOCKET_IFNAME"] = loopback
        return variables

    def _rank_variables(self, member: GangMember, context: RankContext) -> dict[str, str]:
        variables = {"TORCH_NCCL_DEBUG_INFO_PIPE_FILE": flight_pipe(member.placed.pid)} if self._demand.gpus else {}
        if context.local_size < context.num_ranks:
            variables |= member.placed.outward
        return variables | {
            "RANK": str(context.rank),
            "LOCAL_RANK": member.placed.device if self._demand.gpus else str(context.local_rank),
            "LOCAL_WORLD_SIZE": str(context.local_size),
            "LOCAL_SIZE": str(context.local_size),
        }
