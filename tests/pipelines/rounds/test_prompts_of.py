"""Which prompts a round has: those of an endless sequence that is gone through round by round, found without doing so."""

from __future__ import annotations

import random
from collections import deque

import pytest

from raydpo.rundir.rounds_folder import prompts_of


def replayed(num_rounds: int, num_prompts: int, per_round: int, seed: int) -> list[list[int]]:
    """The definition: take the next prompts of the line; one that the round has already is the first of the next round."""
    line: deque[int] = deque()
    rounds: list[list[int]] = []
    laps = 0
    for _ in range(num_rounds):
        chosen: dict[int, None] = {}
        deferred: list[int] = []
        while len(chosen) < per_round:
            if not line:
                fresh = list(range(num_prompts))
                random.Random(f"{seed} {laps}").shuffle(fresh)
                line, laps = deque(fresh), laps + 1
            prompt = line.popleft()
            if prompt in chosen:
                deferred.append(prompt)
            chosen[prompt] = None
        line.extendleft(reversed(deferred))
        rounds.append(list(chosen))
    return rounds


@pytest.mark.parametrize("num_prompts", [2, 7, 12, 29])
def test_rounds_are_those_of_the_line(num_prompts: int) -> None:
    for per_round in range(1, num_prompts):
        found = [prompts_of(index, num_prompts, per_round, seed=3) for index in range(50)]
        assert found == replayed(50, num_prompts, per_round, seed=3), per_round


def test_nothing_is_gone_through_for_a_late_round() -> None:
    """A replay of a billion rounds would not end. Two neighbours of an epoch share no prompt, and have all of them."""
    late = 10**9
    first, second = (prompts_of(late + index, 1000, 500, seed=0) for index in range(2))
    assert sorted(first + second) == list(range(1000))
    assert len(set(prompts_of(late + 1, 1000, 999, seed=0))) == 999
