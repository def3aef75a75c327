"""All tests once, unchanged: which lines each runs, what it costs, which ones start processes.

Decision: coverage by test, from which a mutant's trial takes the tests that run its line. Lines that run while modules are
imported belong to no test, and what runs in other processes is not seen; `Measured.stages` makes up for both.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.mutate.mutants import Mutant
from tools.mutate.plugin import Cost, Timed

_STARTS = ("subprocess.Popen", "os.fork", "os.posix_spawn")


@dataclass(frozen=True)
class Measured:
    """costs: by test. lines: path -> line -> tests that run it. starting: files of tests that start processes."""

    costs: dict[str, Cost]
    lines: dict[str, dict[int, set[str]]]
    starting: set[str]

    def stages(self, mutant: Mutant) -> list[set[str]]:
        """Tests to run, and those to run after them if all passed.

        First the tests that run the line. Then the rest of their files, for what a fixture of a whole file ran; the files
        that start processes and run something of the module's folder; and where no test runs the line (a constant of the
        module), all that run the module.
        """
        module = self.lines.get(mutant.path, {})
        first = module.get(mutant.line, set())
        folder = [lines for path, lines in self.lines.items() if os.path.dirname(path) == os.path.dirname(mutant.path)]
        neighbours = {file_of(test) for lines in folder for tests in lines.values() for test in tests}
        files = {file_of(test) for test in first or set().union(*module.values())} | (self.starting & neighbours)
        return [stage for stage in (first, {test for test in self.costs if file_of(test) in files} - first) if stage]


def file_of(test: str) -> str:
    """The file of a test's name."""
    return test.partition("::")[0]


def pytest_arguments(tests: Iterable[str], folder: Path) -> list[str]:
    """For files or folders of tests."""
    return ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={folder / 'tests'}", *sorted(tests)]


def measure(packages: Sequence[str], tests: Sequence[str], folder: Path) -> Measured:
    """Run `tests` in this process. Raises RuntimeError when one fails."""
    import coverage
    import pytest

    recorder = coverage.Coverage(source=list(packages), data_file=str(folder / "coverage"), config_file=False)
    starting: set[str] = set()
    running = ""

    def entered(test: str) -> None:
        nonlocal running
        running = test
        recorder.switch_context(test)

    def heard(event: str, arguments: Any) -> None:
        if running and event in _STARTS:
            starting.add(file_of(running))

    sys.addaudithook(heard)
    plugin = Timed(entered)
    recorder.start()
    code = pytest.main(pytest_arguments(tests, folder), plugins=[plugin])
    recorder.stop()
    if code:
        raise RuntimeError(f"pytest ended with {code!r} without any mutant: {plugin.failed}")
    return Measured(plugin.measured, _lines(recorder), starting)


def _lines(recorder: Any) -> dict[str, dict[int, set[str]]]:
    data = recorder.get_data()
    found = {}
    for file in data.measured_files():
        by_line = data.contexts_by_lineno(file)
        found[os.path.relpath(file)] = {line: set(tests) - {""} for line, tests in by_line.items()}
    return found
