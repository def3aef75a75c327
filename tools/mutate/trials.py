"""Mutants and what became of each: killed (by which test), survived, or over the time limit.

Decision: a mutant's fast tests run first, in a process forked from this one, which has imported everything but the
project; only a mutant that they let live meets the slower ones. A process that dies or cannot import is a kill.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from tools.mutate.hook import install, prepare
from tools.mutate.measure import Measured, file_of, measure, pytest_arguments
from tools.mutate.mutants import Mutant
from tools.mutate.plugin import Chosen, Cost
from tools.mutate.process import Child, Ending, start

Status = Literal["killed", "survived", "timeout"]
T = TypeVar("T")

IMPORTS_S = 60.0
"""CPU seconds that a trial may take in addition to its tests: importing the project and them."""
WAITING_TIMES = 10.0
"""How much longer than its CPU seconds a trial may take on the clock."""
_POLL_S = 0.02


@dataclass(frozen=True)
class Outcome:
    """by: the test that failed. num_tests: chosen for it. is_executed: whether a test was seen to run the line."""

    mutant: Mutant
    status: Status
    by: str
    num_tests: int
    is_executed: bool
    seconds: float


@dataclass
class _Trial:
    mutant: Mutant
    stages: list[set[str]]
    is_executed: bool
    began: float = field(default_factory=time.monotonic)
    num_tests: int = 0

    def outcome(self, status: Status, by: str) -> Outcome:
        seconds = time.monotonic() - self.began
        return Outcome(self.mutant, status, by, self.num_tests, self.is_executed, round(seconds, 2))


def measured(packages: Sequence[str], tests: Sequence[str], limit_s: float = 3600.0) -> Measured:
    """`measure` in a process of its own, so that this one never imports the project. Raises RuntimeError with its output."""
    with _folder() as folder:
        child = start(partial(_measure, packages, tests, folder), folder, limit_s, limit_s)
        while (ended := child.ended()) is None:
            time.sleep(_POLL_S)
        ending, found = ended
        if ending != "returned":
            raise RuntimeError(
                f"the tests could not be measured ({ending}):\n{(folder / 'output').read_text()[-4000:]}"
            )
    assert isinstance(found, Measured)
    return found


def _measure(packages: Sequence[str], tests: Sequence[str], folder: Path) -> Measured:
    _set_environment(folder)
    return measure(packages, tests, folder)


def run(mutants: Sequence[Mutant], facts: Measured, workers: int, tell: Callable[[Outcome], Any]) -> list[Outcome]:
    """Try all `mutants`, `workers` at a time; `tell` hears of each. In the order in which they end."""
    outcomes: list[Outcome] = []
    waiting = list(reversed(mutants))
    running: dict[int, tuple[_Trial, Child]] = {}
    while waiting or running:
        while waiting and len(running) < workers:
            mutant = waiting.pop()
            is_executed = bool(facts.lines.get(mutant.path, {}).get(mutant.line))
            _next(_Trial(mutant, facts.stages(mutant), is_executed), facts, running)
        time.sleep(_POLL_S)
        for pid, (trial, child) in list(running.items()):
            if (ended := child.ended()) is None:
                continue
            del running[pid]
            shutil.rmtree(child.folder, ignore_errors=True)
            status, by = _status(*ended)
            if status == "survived" and trial.stages:
                _next(trial, facts, running)
                continue
            outcomes.append(trial.outcome(status, by))
            tell(outcomes[-1])
    return outcomes


def _next(trial: _Trial, facts: Measured, running: dict[int, tuple[_Trial, Child]]) -> None:
    """Start the next stage of a trial."""
    tests = trial.stages.pop(0) if trial.stages else set()
    costs = {test: facts.costs[test] for test in tests}
    trial.num_tests += len(costs)
    folder = Path(tempfile.mkdtemp(prefix="mutant-"))
    cpu_s = IMPORTS_S + 10 * sum(cost.cpu_s for cost in costs.values())
    wall_s = WAITING_TIMES * (IMPORTS_S + sum(cost.wall_s for cost in costs.values()))
    child = start(partial(_try, trial.mutant, costs, folder), folder, cpu_s, wall_s)
    running[child.pid] = (trial, child)


def _try(mutant: Mutant, costs: dict[str, Cost], folder: Path) -> tuple[int, str]:
    """In the child: (pytest's exit code, the test that failed)."""
    import pytest

    source = mutant.apply(Path(mutant.path).read_bytes())
    _set_environment(folder)
    os.environ.update(prepare(folder, mutant.module, source))
    install()
    plugin = Chosen(costs)
    files = {file_of(test) for test in costs}
    return (int(pytest.main(pytest_arguments(files, folder), plugins=[plugin])) if files else 0), plugin.failed


def _status(ending: Ending, returned: Any) -> tuple[Status, str]:
    if ending == "timeout":
        return "timeout", ""
    if ending == "died":
        return "killed", "its process died"
    code, failed = returned
    return ("killed", failed or f"pytest ended with {code}") if code else ("survived", "")


def _set_environment(folder: Path) -> None:
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(folder / "hypothesis")
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="mutant-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
