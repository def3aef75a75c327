"""Rounds in which roles are killed in given phases, each once; as a program, the driver itself.

Comes in: a config, and who is to die in which phase. Goes out: rounds, and who died. Decision: roles are known by the places
that pools and gangs are told of, phases by what the driver is told while work goes on, so that a death comes in the middle;
each role has one process, so that nobody is there to take its work over.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from raydpo.config import Config
from raydpo.config.load import load
from raydpo.driver.weight_sync import Push
from raydpo.pipelines import iterate
from raydpo.runtime import Gang, Place, Pool
from raydpo.schema.events import Advanced, Event, StageDone, StageStarted
from raydpo.schema.shared_weights import SharedWeights
from tests.pipelines.driver import alive, process_of

ROLES = {
    "generator": "generate",
    "judge": "judge",
    "reference worker": "reference",
    "trainer": "train",
    "evaluation scorer": "initial policy",
}
"""Who dies -> the name of its pool or gang."""
PHASES = ("sampling", "judging", "reference", "training", "push", "evaluation samples", "evaluation scores")
_STAGES = {"judge": "judging", "reference": "reference", "train": "training"}
Strike = Callable[[str], None]
"""Called with the phase that is in its middle."""


class Killer:
    """An observer that kills each role of `victims` (phase -> role) in its phase, once `quiet_rounds` are over.

    killed: phase -> role, as they died. pids: name of a pool or gang -> its newest process. files: of weights that were pushed.
    """

    def __init__(self, victims: Mapping[str, str], quiet_rounds: int, num_sampled: int) -> None:
        self.killed: dict[str, str] = {}
        self.pids: dict[str, int] = {}
        self.files: list[Path] = []
        self._left, self._num_sampled, self._quiet = dict(victims), num_sampled, f"round {quiet_rounds - 1}"
        self._is_armed, self._is_sampling = not quiet_rounds, False

    def __call__(self, event: Event) -> None:
        match event:
            case StageStarted("generate", total):
                self._is_sampling = total == self._num_sampled
            case StageDone(stage) if stage == self._quiet:
                self._is_armed = True
            case Advanced("generate"):
                self.strike("sampling" if self._is_sampling else "evaluation samples")
            case Advanced(stage) if stage in _STAGES:
                self.strike(_STAGES[stage])

    def strike(self, phase: str) -> None:
        """Kill whoever is to die in `phase`, and return when it is dead."""
        if not self._is_armed or phase not in self._left:
            return
        role = self._left.pop(phase)
        self.killed[phase] = role
        pid = os.getpid() if role == "driver" else self.pids[ROLES[role]]
        process = process_of(pid)
        os.kill(pid, signal.SIGKILL)
        while alive({process}):
            time.sleep(0.005)


@contextmanager
def watched(killer: Killer) -> Iterator[None]:
    """`killer` knows who is where, and is told of a push and of scores."""
    begin, place, receive, run = Pool.__init__, Gang._place, Push.receive, Pool.run

    def noted_pool(
        self: Pool, name: str, *rest: Any, placed: Callable[[Place], None] | None = None, **more: Any
    ) -> None:
        def noted(found: Place) -> None:
            killer.pids[name] = found.pid
            if placed is not None:
                placed(found)

        begin(self, name, *rest, placed=noted, **more)

    def noted_gang(self: Gang) -> None:
        place(self)
        killer.pids["train"] = self.places[0].pid

    def struck_push(self: Push, part: Any) -> None:
        if isinstance(part, SharedWeights):
            killer.files.append(Path(part.path))
        killer.strike("push")
        receive(self, part)

    def struck_run(self: Pool, items: Any) -> Iterator[tuple[int, Any]]:
        for answer in run(self, items):
            yield answer
            if self._name == "initial policy":
                killer.strike("evaluation scores")

    changes: dict[tuple[type, str], Any] = {
        (Pool, "__init__"): noted_pool,
        (Gang, "_place"): noted_gang,
        (Push, "receive"): struck_push,
        (Pool, "run"): struck_run,
    }
    with ExitStack() as stack:
        for (kind, name), new in changes.items():
            stack.enter_context(patch.object(kind, name, new))
        yield


def run(config: Config, killer: Killer) -> None:
    """All rounds, with deaths."""
    with watched(killer):
        for _ in iterate(config, observer=killer):
            pass


if __name__ == "__main__":
    of_run = load(Path(sys.argv[1]), verb="iterate").config
    assert of_run.rounds is not None
    run(of_run, Killer({sys.argv[2]: "driver"}, 0, of_run.rounds.prompts_per_round or 0))
