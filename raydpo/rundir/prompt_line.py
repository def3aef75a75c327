"""The line of prompts that rounds take from: where a round ended, and which prompts come next.

Comes in: a place in the line and how many prompts are taken. Goes out: these, and the place after them. Decision: the line is
the one of `prompts_of`, an endless sequence of shuffled epochs in which a prompt that a round has already is the first of the
next round; a round that ends early leaves the others where they are. Price: a place names the prompts that were put back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from raydpo.rundir.rounds_folder import shuffled


@dataclass(frozen=True)
class PromptPlace:
    """lap: epoch whose prompts are taken. next: place in it. first: prompts that were put back, and come before it."""

    lap: int = 0
    next: int = 0
    first: tuple[int, ...] = ()

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> PromptPlace:
        """What `record` gave."""
        return cls(record["lap"], record["next"], tuple(record["first"]))

    def record(self) -> dict[str, Any]:
        """For a manifest."""
        return asdict(self)


def take(
    place: PromptPlace, number: int, num_prompts: int, per_round: int | None, seed: int
) -> tuple[list[int], PromptPlace]:
    """(the next `number` different prompts of a round, the place after them). per_round: as of `prompts_of`; where it is all of
    them, epochs are in the order of the files."""
    is_shuffled = per_round is not None and per_round < num_prompts

    def epoch(lap: int) -> list[int]:
        return shuffled(lap, num_prompts, seed) if is_shuffled else list(range(num_prompts))

    first, lap, at = deque(place.first), place.lap, place.next
    line, chosen, put_back = epoch(lap), dict[int, None](), list[int]()
    while len(chosen) < number:
        if first:
            prompt = first.popleft()
        else:
            if at == num_prompts:
                lap, at, line = lap + 1, 0, epoch(lap + 1)
            prompt, at = line[at], at + 1
        if prompt in chosen:
            put_back.append(prompt)
        chosen[prompt] = None
    return list(chosen), PromptPlace(lap, at, (*put_back, *first))
