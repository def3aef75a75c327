"""Actors as processes of this machine, without Ray.

What comes in: classes and calls. What goes out: what `local_actor` answers, and a sentence for each way in which a process
ends. Decision: messages are bytes over a socket pair of each actor; nothing listens on a port, and nothing outlives the
driver. Its end of the pipe that keeps an actor alive is not inherited by anybody. Processes are forks of one that has
imported what their role needs, so that several cost one import.
"""

from __future__ import annotations

import math
import os
import pickle
import signal
import socket
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any

import cloudpickle

from raydpo.errors import Cause
from raydpo.runtime.backend import ActorDied, CallFailed
from raydpo.runtime.failure import Death
from raydpo.runtime.forked_process import ForkedProcess, ForkServers, last_line
from raydpo.runtime.local_gpus import LocalGpus
from raydpo.runtime.patience import NodePatience
from raydpo.runtime.place import Place
from raydpo.runtime.resources import Demand
from raydpo.runtime.silence import read_silence_s
from raydpo.runtime.stacks import Stacks, gather, read_stack

_LONGEST_WAIT_S = 3600.0
_END_S = 60.0
"""How long a process that closed its connection may take to end."""


@dataclass(eq=False)
class _Process:
    process: ForkedProcess
    connection: Connection
    log: Path
    devices: tuple[str, ...]
    gpus: float
    pending: dict[int, deque[tuple[str, Any]]] = field(default_factory=dict)
    death: Death | None = None


@dataclass(frozen=True, eq=False)
class _Pending:
    actor: _Process
    number: int
    is_bounded: bool = False


class LocalProcesses:
    """See `raydpo.runtime.backend.Actors`. Places are not reserved: the session has checked that all fit."""

    is_shared = False

    def __init__(self, gpus: LocalGpus, folder: Path, servers: ForkServers, preload: Sequence[str]) -> None:
        self._gpus, self._folder, self._servers, self._preload = gpus, folder, servers, preload
        self._numbers = count(1)
        self.hint = f"{folder}/*.log has the last output of each while the run goes on"

    def reserve(self, demand: Demand, patience: NodePatience) -> Sequence[Any]:
        return [None] * demand.workers

    def seat(self, demand: Demand, number: int) -> Any:
        return None

    def release(self, places: Sequence[Any]) -> None:
        pass

    def start(self, kind: type, demand: Demand, place: Any = None) -> _Process:
        devices = self._gpus.take(demand.gpus)
        descriptor, name = tempfile.mkstemp(prefix="actor-", suffix=".log", dir=self._folder)
        os.close(descriptor)
        process, connection = self._servers.fork(kind.__name__, ",".join(devices), Path(name), self._preload)
        actor = _Process(process, connection, Path(name), devices, demand.gpus)
        self._send(actor, 0, "make", (kind,))
        return actor

    def call(self, actor: _Process, method: str, *arguments: Any, hang_timeout_s: float | None = None) -> _Pending:
        return self._ask(actor, method, arguments, None)

    def stream(
        self, actor: _Process, method: str, *arguments: Any, max_unread: int | None, hang_timeout_s: float
    ) -> _Pending:
        return self._ask(actor, method, arguments, max_unread)

    def share(self, value: Any) -> Any:
        return value  # each actor has a connection of its own, and gets its own bytes

    def wait(self, pending: Sequence[_Pending], timeout_s: float) -> list[_Pending]:
        deadline_s = time.monotonic() + timeout_s
        while not (ready := _speaking(pending)):
            actors = {call.actor.connection: call.actor for call in pending}
            left_s = deadline_s - time.monotonic()
            for connection in wait_for(list(actors), min(max(0.0, left_s), _LONGEST_WAIT_S)):
                _hear(actors[connection])  # type: ignore[index]
            if left_s <= 0:
                return _speaking(pending)
        return ready

    def result(self, call: _Pending, timeout_s: float | None = None) -> Any:
        if not self.wait([call], math.inf if timeout_s is None else timeout_s):
            raise ActorDied(Death(Cause.HUNG, f"it did not answer within {timeout_s:.0f} s"))
        kind, value = self._next(call)
        if kind == "failed":
            raise CallFailed(value)
        del call.actor.pending[call.number]
        return value

    def next_event(self, stream: _Pending) -> Any:
        self.wait([stream], math.inf)
        kind, value = self._next(stream)
        if kind == "event":
            if stream.is_bounded:
                self._send(stream.actor, stream.number, "credit", ())
            return value
        if kind == "failed":
            text = f"an event of it could not be read ({value.strip().splitlines()[-1]})"
            raise ActorDied(Death(Cause.RAISED, text))
        del stream.actor.pending[stream.number]
        raise StopIteration

    def kill(self, actor: _Process) -> None:
        if actor.process.let_go():
            self._gpus.give_back(actor.devices, actor.gpus)
        actor.process.wait_for_end(_END_S)
        actor.death = actor.death or Death(Cause.ENDED, "it was ended")

    @staticmethod
    def locate() -> Place:
        return Place("this machine", socket.gethostname(), os.getpid())

    def stacks(self, ranks: Mapping[int, tuple[Place, Stacks]]) -> dict[int, str]:
        return gather(ranks, lambda _, stacks: stacks, lambda stacks, _: read_stack(stacks), 0.0)

    def silences_s(self, ranks: Mapping[int, tuple[Place, Stacks]]) -> dict[int, float]:
        found = gather(ranks, lambda _, stacks: stacks, lambda stacks, _: read_silence_s(stacks), 0.0)
        return {number: float(text) for number, text in found.items()}

    def free(self) -> str:
        return f"all CPUs and {self._gpus.free():g} GPUs of this machine"

    def _ask(self, actor: _Process, method: str, arguments: tuple[Any, ...], max_unread: int | None) -> _Pending:
        call = _Pending(actor, next(self._numbers), max_unread is not None)
        actor.pending[call.number] = deque()
        self._send(actor, call.number, method, arguments, max_unread)
        return call

    def _send(
        self, actor: _Process, number: int, method: str, arguments: tuple[Any, ...], max_unread: int | None = None
    ) -> None:
        try:
            actor.connection.send_bytes(cloudpickle.dumps((number, method, arguments, max_unread)))
        except OSError:  # it is dead, and whoever waits for the answer gets an error
            _hear(actor)

    def _next(self, call: _Pending) -> tuple[str, Any]:
        inbox = call.actor.pending[call.number]
        if not inbox:
            assert call.actor.death is not None
            raise ActorDied(call.actor.death)
        return inbox.popleft()


def _speaking(pending: Sequence[_Pending]) -> list[_Pending]:
    return [call for call in pending if call.actor.death or call.actor.pending[call.number]]


def _hear(actor: _Process) -> None:
    """Take what the actor said; note its death."""
    try:
        while actor.connection.poll(0):
            number, kind, value = pickle.loads(actor.connection.recv_bytes())
            if number in actor.pending:
                actor.pending[number].append((kind, value))
    except (EOFError, OSError):
        actor.death = actor.death or _death_of(actor)


def _death_of(actor: _Process) -> Death:
    status = actor.process.exit_code(_END_S)
    if status is None:
        return Death(Cause.UNREACHABLE, "its process closed its connection and did not end")
    words = last_line(actor.process.server_log or actor.log)
    if status < 0:
        name = signal.Signals(-status).name
        why = ", as the kernel sends it when memory runs out" if name == "SIGKILL" else ""
        return Death(Cause.KILLED, f"its process ended without an exception: killed by {name}{why}{words}")
    return Death(Cause.EXITED, f"its process ended without an exception, with exit code {status}{words}")
