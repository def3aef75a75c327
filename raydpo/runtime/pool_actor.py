"""An actor of a pool: what it does in its process, and what the driver notes of it.

What comes in: a place, a factory, then items one by one. What goes out: results, or records of what was raised.
Decision: the factory comes as bytes after the actor is placed and has offered its signs of life, so that a factory that hangs
is seen, too. A worker that can have several items in work is asked to go on until one is done, so that an actor never has more
than one call, on whichever runtime; the price is a way there and back for each item.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from raydpo.runtime.failure import Failure, failure_of
from raydpo.runtime.place import Place, load_function
from raydpo.runtime.silence import offer_signs
from raydpo.runtime.stacks import Stacks
from raydpo.schema.pulse import beat


class TakesSeveral(Protocol):
    """A worker that may have several items in work; one without `takes_several` is called with an item, and answers."""

    takes_several: bool

    def take(self, number: int, item: Any) -> None:
        """Have one more item in work."""
        ...

    def ended(self, may_come_more: bool) -> list[tuple[int, Any]]:
        """Work until items are done: their numbers and results. may_come_more: return as soon as there is room for another,
        be it without a result."""
        ...


class PoolActor:
    """Runs in its own process: place, then prepare, then work on items one by one."""

    def place(self, locate: Callable[[], Place], is_shared: bool) -> tuple[Place, Stacks | None]:
        """First call; answers as soon as the actor has its CPUs and GPUs.

        is_shared: the process is the driver's too, of which nobody asks signs of life.
        """
        return locate(), None if is_shared else offer_signs()

    def prepare(self, payload: bytes, variables: dict[str, str], preload: Sequence[str]) -> Failure | bool:
        """Make the worker (which may load a model for minutes). Returns whether it may have several items in work."""
        try:
            self._work = load_function(payload, variables, preload)()
        except Exception as error:  # noqa: BLE001 - whatever user code raises travels to the driver as a record
            return failure_of(error)
        return bool(getattr(self._work, "takes_several", False))

    def work(self, item: Any) -> Any:
        """One item. An exception comes back as a Failure, not through Ray."""
        beat()
        try:
            return self._work(item)
        except Exception as error:  # noqa: BLE001 - as above
            return failure_of(error)

    def work_several(self, taken: tuple[int, Any] | None, may_come_more: bool) -> list[tuple[int, Any]] | Failure:
        """Have one more item in work, if it is given one, and work as `TakesSeveral.ended` says."""
        beat()
        try:
            if taken is not None:
                self._work.take(*taken)
            return list(self._work.ended(may_come_more))
        except Exception as error:  # noqa: BLE001 - as above
            return failure_of(error)

    def work_aloud(self, item: Any) -> Iterator[Any]:
        """One item: what its worker says meanwhile, and its answer last."""
        beat()
        try:
            yield from self._work(item)
        except Exception as error:  # noqa: BLE001 - as above
            yield failure_of(error)


@dataclass
class PoolWorker:
    """One actor of a pool, as the driver sees it.

    number: its place in the pool.
    actor: the handle that calls go to.
    place: where it runs, None until it has answered.
    state: what its pending call is, or ready for one.
    items: indices of the items that it has in work.
    takes_several: whether these may be more than one.
    was_idle: it stood without work since it last answered, and may have died then.
    stacks: what it offered for the case that it hangs.
    silent_s: how long this driver has waited for its pending call, less what beats tell.
    """

    number: int
    actor: Any
    place: Place | None = None
    state: Literal["placing", "preparing", "greeting", "ready", "told", "working"] = "placing"
    items: list[int] = field(default_factory=list)
    takes_several: bool = False
    was_idle: bool = False
    stacks: Stacks | None = None
    silent_s: float = 0.0
