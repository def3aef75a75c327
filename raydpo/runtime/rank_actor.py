"""A rank of a gang: what it does in its process, and what it is told of its place.

What comes in: variables, then one function after the other. What goes out: the events of each, and what it raised as the last.
Decision: what a function puts into `kept` stays for the functions after it; whoever put it there gave it a `close`, because a
process that is the driver's too outlives its ranks.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from raydpo.runtime.failure import Failure, failure_of
from raydpo.runtime.place import Place, load_function
from raydpo.runtime.stacks import Stacks, offer_stacks
from raydpo.runtime.stops import left_to_the_driver


@dataclass(frozen=True)
class RankContext:
    """Who a rank is.

    rank, num_ranks: its number in the gang, from 0, and how many there are.
    local_rank, local_size: the same among the ranks of its own node.
    use_gpu: whether it has one.
    kept: what one function leaves for the next on the same rank, by name; None where there is no next one. Each value has a
        `close()`, which is called when the gang ends before its process does.
    """

    rank: int
    num_ranks: int
    local_rank: int
    local_size: int
    use_gpu: bool
    kept: dict[str, Any] | None = field(default=None, compare=False, repr=False)


class RankActor:
    """Runs in its own process: place, then for each function prepare and run it as a stream."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}
        self._stacks: Stacks | None = None

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

        variables, preload: for the first function; empty for later ones. is_shared: the process is the driver's too, which can
        be asked for no stack of one rank.
        """
        self._is_shared = is_shared
        try:
            self._function = load_function(payload, variables, preload)
        except Exception as error:  # noqa: BLE001 - whatever an import raises travels to the driver as a record
            return failure_of(error)
        if not is_shared and self._stacks is None:
            self._stacks = offer_stacks()
        return self._stacks

    def run(self, context: RankContext) -> Iterator[Any]:
        """Stream the events; an exception becomes the last one."""
        if context.kept is not None:
            context = replace(context, kept=self._kept)
        with nullcontext() if self._is_shared else left_to_the_driver():
            try:
                yield from self._function(context)
            except Exception as error:  # noqa: BLE001 - as above
                yield failure_of(error)

    def end(self) -> None:
        """Close what is kept, the newest first."""
        while self._kept:
            _, value = self._kept.popitem()
            value.close()
