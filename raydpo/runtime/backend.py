"""What a runtime can do: start actors, call them, hear from them, end them. Pools and gangs are made of nothing else.

What comes in: classes whose instances live in actors. What goes out: calls and streams to wait for, and what they gave.
Decision: one small seam under pool and gang, so that retries, last words, hangs and verdicts are written once and hold on
Ray, on processes of this machine and in this process alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Protocol

from raydpo.runtime.failure import Death
from raydpo.runtime.patience import NodePatience
from raydpo.runtime.place import Place
from raydpo.runtime.resources import Demand, Node
from raydpo.runtime.stacks import Stacks

Kind = Literal["ray", "local"]


class ActorDied(Exception):
    """The process of an actor is gone, or did not answer in time. Its text is the clause that `death` holds."""

    def __init__(self, death: Death) -> None:
        super().__init__(death.text)
        self.death = death


class CallFailed(Exception):
    """A call ended without a result though its actor lives: what it returned could not travel."""


class Actors(Protocol):
    """Actors of one role. Handles of actors, calls and streams are opaque; calls and streams can be keys of a dict."""

    is_shared: bool
    """Whether actors share this process, so that a death is the driver's own."""
    hint: str
    """Where the last output of a dead actor can be read, a clause."""

    def reserve(self, demand: Demand, patience: NodePatience) -> Sequence[Any]:
        """Places for a gang, all at once. Raises ResourceError when they are not free in time."""
        ...

    def seat(self, demand: Demand, number: int) -> Any:
        """The place of the actor with this number where GPUs are shared; None elsewhere."""
        ...

    def release(self, places: Sequence[Any]) -> None:
        """Give places back. Never raises."""
        ...

    def start(self, kind: type, demand: Demand, place: Any = None) -> Any:
        """An actor that makes `kind()` in its process; it is there once its first call is answered. demand: of its role."""
        ...

    def call(self, actor: Any, method: str, *arguments: Any, hang_timeout_s: float | None = None) -> Any:
        """Ask for `method`; the answer is there later. Calls of one actor are answered in order.

        hang_timeout_s: without a beat for so long, an actor that cannot be ended prints where it is.
        """
        ...

    def stream(self, actor: Any, method: str, *arguments: Any, max_unread: int | None, hang_timeout_s: float) -> Any:
        """Start a generator method. max_unread: events that it may be ahead of the reader (backpressure; None: no bound)."""
        ...

    def share(self, value: Any) -> Any:
        """`value` as an argument for many calls, stored once."""
        ...

    def wait(self, pending: Sequence[Any], timeout_s: float) -> list[Any]:
        """Those of `pending` (calls, streams) that have something to say, as soon as one has; none after the time-out."""
        ...

    def result(self, call: Any, timeout_s: float | None = None) -> Any:
        """What a call returned. Raises ActorDied (also after the time-out) and CallFailed."""
        ...

    def next_event(self, stream: Any) -> Any:
        """The next event of a stream. Raises StopIteration at its end, ActorDied."""
        ...

    def kill(self, actor: Any) -> None:
        """End an actor at once. Ending a dead one is fine."""
        ...

    @staticmethod
    def locate() -> Place:
        """In the actor: where it runs."""
        ...

    def stacks(self, ranks: Mapping[int, tuple[Place, Stacks]]) -> dict[int, str]:
        """Where ranks are: the innermost frames of each, those that do not answer left out."""
        ...

    def silences_s(self, ranks: Mapping[int, tuple[Place, Stacks]]) -> dict[int, float]:
        """Seconds since the last beat of each (`silence`), those that do not answer left out."""
        ...

    def free(self) -> str:
        """What nobody holds now, for a message: "2 CPUs and 0 GPUs"."""
        ...


class Backend(Protocol):
    """An open session with a runtime."""

    kind: Kind
    in_process: bool
    """Whether a role of one actor may run in this process."""

    def nodes(self) -> list[Node]:
        """Every node that stays."""
        ...

    def leaving(self) -> frozenset[str]:
        """Nodes that will be taken away and have said so: drained or preempted with notice."""
        ...

    def wish(self, demand: Demand) -> AbstractContextManager[None]:
        """While it is open, whoever starts nodes is told that `demand` lacks room."""
        ...

    def gpus_shared(self, num_gpus: int) -> AbstractContextManager[None]:
        """While it is open, actors with a GPU each have seats on the same `num_gpus` GPUs; 0: each has its own."""
        ...

    def actors(self, num_actors: int, *, own_process: bool, preload: Sequence[str] = ()) -> Actors:
        """How the actors of a role of this size are made.

        own_process: they leave traces in their process.
        preload: modules that each of them imports anyway, and that may be there before its variables are.
        """
        ...

    def show(self, name: str, help_text: str, value: float, labels: dict[str, str]) -> None:
        """A number for the monitoring of the cluster, if there is any."""
        ...

    def check_storage(self, folder: Path) -> frozenset[str]:
        """Prove that every node reads and writes the same `folder`; ids of the nodes. Raises StorageError."""
        ...

    def unseen_on(self, node_id: str, folder: Path) -> str:
        """What is wrong with `folder` on a node that came later, in a sentence that names it; empty for nothing."""
        ...
