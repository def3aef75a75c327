"""The part of a trial inside pytest: which tests run and in which order, and what is written down about them.

Decision: hypothesis does not shrink what it finds, and keeps nothing: that a test failed is all that counts here. A test
that takes many times its usual CPU time ends the process by SIGPROF.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

PATIENCE_S, PATIENCE_TIMES = 5.0, 10.0
"""CPU seconds that a test may take: this many, and this many times its usual ones."""


@dataclass(frozen=True)
class Cost:
    """Of one test: seconds on the clock, and of CPU in this process."""

    wall_s: float
    cpu_s: float


class Chosen:
    """Runs only the tests in `costs`, the fastest first; without it, all. failed: the first test that failed."""

    def __init__(self, costs: Mapping[str, Cost] | None) -> None:
        self.costs = costs
        self.failed = ""

    def pytest_collection(self, session: pytest.Session) -> None:
        from hypothesis import Phase, settings

        phases = (Phase.explicit, Phase.generate)
        settings.register_profile("mutate", deadline=None, database=None, derandomize=True, phases=phases)
        settings.load_profile("mutate")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if (costs := self.costs) is not None:
            chosen = {item.nodeid: item for item in items if item.nodeid in costs}
            items[:] = [chosen[name] for name in sorted(chosen, key=lambda name: costs[name].cpu_s)]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        if self.costs is not None:
            signal.setitimer(signal.ITIMER_PROF, PATIENCE_S + PATIENCE_TIMES * self.costs[item.nodeid].cpu_s)
        try:
            return (yield)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.failed:
            self.failed = f"{report.nodeid} (import)"


class Timed(Chosen):
    """All tests, with the cost of each. entered: called with the name of a test before it begins."""

    def __init__(self, entered: Callable[[str], Any]) -> None:
        super().__init__(None)
        self.entered = entered
        self.measured: dict[str, Cost] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.entered(item.nodeid)
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            return (yield)
        finally:
            self.measured[item.nodeid] = Cost(time.perf_counter() - wall, time.process_time() - cpu)
