"""One function on all ranks of a gang: their events as they come, and one error for whatever ends them.

What comes in: ranks, each with a stream. What goes out: (rank, event) in each rank's order. Decision: after the first failure
the driver waits a few seconds for the errors of the others, and longer where all that is known is a peer's "connection closed",
because that often arrives before the news of the death that caused it. Price: a failing run ends those seconds later.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from raydpo.errors import HangError
from raydpo.runtime.backend import ActorDied, Actors
from raydpo.runtime.failure import Failure
from raydpo.runtime.place import Place
from raydpo.runtime.rank_failures import RankFailure, verdict
from raydpo.runtime.stacks import Stacks

_GRACE_S = 4.0
"""How long the other ranks may still report after the first failure."""
_CAUSE_S = 30.0
"""How long they may while every failure looks like the loss of another rank."""


@dataclass
class GangMember:
    """A rank as the driver sees it.

    actor: the handle that calls go to. bundle: its place among those reserved. place: where it runs, None until it has said so.
    rank: its number, -1 until all have a place. stream, num_events, silent_s, done: of the function that runs. stacks: what it
    offered for the case that it hangs.
    """

    actor: Any
    bundle: int
    place: Place | None = None
    rank: int = -1
    stream: Any = None
    stacks: Stacks | None = None
    num_events: int = 0
    silent_s: float = 0.0
    done: bool = False

    @property
    def placed(self) -> Place:
        """Its place, once it has one."""
        assert self.place is not None
        return self.place

    def begin(self, stream: Any) -> None:
        """The function is new, and so is what is known of it."""
        self.stream, self.num_events, self.silent_s, self.done = stream, 0, 0.0, False


class GangRun:
    """One function, which the streams of `members` run. name, hang_timeout_s: of the gang."""

    def __init__(self, name: str, members: Sequence[GangMember], actors: Actors, hang_timeout_s: float) -> None:
        self._name, self._members, self._actors, self._hang_timeout_s = name, members, actors, hang_timeout_s

    def events(self) -> Iterator[tuple[int, Any]]:
        """Until every rank is at its end. Raises what the gang is to raise."""
        while waiting := [member for member in self._members if not member.done]:
            for member in self._wait(waiting, timeout_s=min(5.0, self._hang_timeout_s)):
                event = self._next(member)
                if isinstance(event, RankFailure):
                    failures = [event]
                    yield from self._last_words(failures)
                    raise verdict(self._name, failures)
                if not member.done:
                    yield member.rank, event
            self._check_silence()

    def _wait(self, members: Sequence[GangMember], *, timeout_s: float) -> list[GangMember]:
        """Ranks with an event. Time that the caller spends elsewhere counts for nobody's silence."""
        streams = {member.stream: member for member in members}
        started_s = time.monotonic()
        ready = self._actors.wait(list(streams), timeout_s)
        waited_s = time.monotonic() - started_s
        speaking = [streams[stream] for stream in ready]
        for member in members:
            member.silent_s = 0.0 if member in speaking else member.silent_s + waited_s
        return speaking

    def _next(self, member: GangMember) -> Any:
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
        while waiting := [member for member in self._members if not member.done]:
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
        silent = [member for member in self._members if not member.done and member.silent_s >= self._hang_timeout_s]
        if not silent:
            return
        frames = self._actors.stacks({m.rank: (m.placed, m.stacks) for m in self._members if not m.done and m.stacks})
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


def _in_collective(frames: str) -> bool:
    return "distributed_c10d" in frames or "/deepspeed/comm/" in frames


def _named(members: Sequence[GangMember]) -> str:
    numbers = ", ".join(str(member.rank) for member in members)
    return f"rank {numbers}" if len(members) == 1 else f"ranks {numbers}"
