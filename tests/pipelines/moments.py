"""Counted moments in the life of a command, and a signal at one of them: `python -m tests.pipelines.moments KIND N VERB FILE`.

Comes in: a verb and a config file. Goes out: the exit code, and how many moments of each kind there were. Decision: a moment
is the n-th event of its kind, never a time: an access to a file that the command makes, or the call of a function in the
middle of long work. Python's audit hooks tell of the first, wrappers of the second; both count and call the real thing. The
command runs in this process, on the signals and handlers of a real one.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raydpo import cli

FUNCTIONS = {
    "preparation": "raydpo.data.row_encoder:RowEncoder._text_of",
    "precompute": "raydpo.reference.forward:beat",
    "step": "raydpo.train.step:_forward_and_backward",
    "evaluation": "raydpo.train.trainer:evaluate_share",
    "sampling": "raydpo.generate.decoding:beat",
    "judging": "raydpo.driver.judge_progress:JudgeProgress._advance",
    "choosing": "raydpo.rounds.produce:make_pairs",
}
"""Kind of moment -> what is called there, again and again."""

FILES = {
    "data": "preparation",
    "caches": "precompute",
    ".staging": "checkpoint",
    "orders": "boundary",
    ".model": "publication",
    ".generations": "sampling",
    ".scores": "judging",
    ".pairs": "choosing",
    ".prompts": "between",
    ".summary": "between",
}
"""Start of a name in the path of a file -> kind of moment. The innermost name decides."""

_ACCESSES = frozenset({"open", "os.rename", "os.remove", "os.mkdir", "os.link", "os.rmdir", "shutil.rmtree"})


@dataclass
class Moments:
    """What happens under `root`. kind, number: where `signum` is sent, counted from 0; "" never."""

    root: Path
    kind: str = ""
    number: int = 0
    signum: int = signal.SIGTERM
    seen: Counter[str] = field(default_factory=Counter)

    def count(self, kind: str) -> None:
        self.seen[kind] += 1
        if kind == self.kind and self.seen[kind] == self.number + 1:
            os.kill(os.getpid(), self.signum)

    def access(self, path: Path) -> None:
        if self.root not in path.parents:
            return
        for name in reversed(path.relative_to(self.root).parts):
            for start, kind in FILES.items():
                if name.startswith(start):
                    self.count(kind)
                    return


_now: list[Moments] = []


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if _now and event in _ACCESSES and isinstance(arguments[0], str | os.PathLike):
        _now[-1].access(Path(arguments[0]))


def run(moments: Moments, verb: str, file: Path) -> int:
    """The exit code of `raydpo VERB FILE` in this process, disturbed as `moments` says."""
    if not _installed:
        sys.addaudithook(_hear)
        _installed.append(True)
    with _wrapped(moments.count):
        _now.append(moments)
        try:
            return cli.main([verb, str(file)])
        finally:
            _now.pop()


_installed: list[bool] = []
"""A hook stays for the life of the process."""


@contextmanager
def _wrapped(count: Callable[[str], None]) -> Iterator[None]:
    """Inside, every function of FUNCTIONS counts its calls."""
    kept = []
    for kind, name in FUNCTIONS.items():
        module, _, path = name.partition(":")
        *outer, last = path.split(".")
        place: Any = importlib.import_module(module)
        for each in outer:
            place = getattr(place, each)
        kept.append((place, last, getattr(place, last)))
        setattr(place, last, _counting(kind, getattr(place, last), count))
    try:
        yield
    finally:
        for place, last, function in kept:
            setattr(place, last, function)


def _counting(kind: str, function: Callable[..., Any], count: Callable[[str], None]) -> Callable[..., Any]:
    def counted(*arguments: Any, **named: Any) -> Any:
        count(kind)
        return function(*arguments, **named)

    return counted


if __name__ == "__main__":
    kind, number, verb, file = sys.argv[1:]
    sys.exit(run(Moments(Path(file).parent, kind, int(number)), verb, Path(file)))
