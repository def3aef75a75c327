"""With `placement: split`, who waits for whom, on a clock that costs set: sampling and training of a round take as long."""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from raydpo.pipelines import online
from raydpo.rounds.run import RoundsRun
from raydpo.schema.events import ignore

ROUNDS = 11


class Clock:
    """Two roles, each with its own time; whoever waits for the other moves on to when that is done."""

    def __init__(self, sampling: float, training: float) -> None:
        self.sampling, self.training = sampling, training
        self.driver = self.generators = 0.0
        self.sampled: list[tuple[float, float]] = []
        self.trained: list[tuple[float, float]] = []

    def submit(self, produce: Any, index: int) -> Future[Any]:
        """Of the thread that makes pairs: it begins when it is asked and has done what it was asked before."""
        begin = max(self.driver, self.generators)
        self.generators = begin + self.sampling
        self.sampled.append((begin, self.generators))
        made = Future[Any]()
        made.set_result(SimpleNamespace(index=index, num_pairs=1, end=self.generators))
        return made

    def train(self, run: Any, index: int, produced: Any, observer: Any) -> dict[str, float]:
        begin = max(self.driver, produced.end)
        self.driver = begin + self.training
        self.trained.append((begin, self.driver))
        return {"train/steps": 1}


def a_run(clock: Clock, max_staleness: int) -> Any:
    """An open run that samples and trains on the clock."""
    run = RoundsRun.__new__(RoundsRun)
    run._section = SimpleNamespace(num_rounds=ROUNDS, max_staleness=max_staleness)  # type: ignore[assignment]
    run._layout = SimpleNamespace(is_ahead=max_staleness > 0)  # type: ignore[assignment]
    run._ahead, run._thread = {}, clock  # type: ignore[assignment]
    run._sight = SimpleNamespace(begin=lambda index: None, phase=lambda *_: nullcontext())  # type: ignore[assignment]
    run._produce = lambda index: clock.submit(None, index).result()  # type: ignore[method-assign]
    run.kept = SimpleNamespace(committed=lambda index: None, lost=lambda index: [])  # type: ignore[assignment]
    run.finish_round = lambda *_: None  # type: ignore[method-assign, assignment, return-value]
    return run


def busy(spans: list[tuple[float, float]], since: float, until: float) -> float:
    return sum(min(end, until) - max(begin, since) for begin, end in spans if end > since and begin < until) / (
        until - since
    )


@pytest.mark.parametrize(("max_staleness", "least", "most"), [(1, 0.9, 1.0), (3, 0.9, 1.0), (0, 0.0, 0.6)])
def test_both_roles_work_in_rounds_2_to_10(
    monkeypatch: pytest.MonkeyPatch, max_staleness: int, least: float, most: float
) -> None:
    clock = Clock(1.0, 1.0)
    monkeypatch.setattr(online, "_train", clock.train)
    run = a_run(clock, max_staleness)
    for index in range(ROUNDS):
        online._round(run, index, ignore)
    since, until = clock.trained[1][0], clock.trained[9][1]
    assert since < until
    for spans in (clock.sampled, clock.trained):
        assert least <= busy(spans, since, until) <= most


@pytest.mark.parametrize("max_staleness", [1, 2, 3])
def test_nothing_is_sampled_further_ahead_than_the_config_allows(
    monkeypatch: pytest.MonkeyPatch, max_staleness: int
) -> None:
    """Of generators that are much faster: round i is begun when the policy that may sample for it is there, and no earlier."""
    clock = Clock(0.01, 1.0)
    monkeypatch.setattr(online, "_train", clock.train)
    run = a_run(clock, max_staleness)
    for index in range(ROUNDS):
        online._round(run, index, ignore)
    assert len(clock.sampled) == ROUNDS
    for index, (begin, _) in enumerate(clock.sampled):
        policy = index - max_staleness
        assert begin >= (clock.trained[policy - 1][1] if policy > 0 else 0.0)
