"""Ranks that stay: processes joined by gloo that run one job after the other, so that imports are paid once.

Ranks of all gangs are forks of one process that has imported what they need. Imports no torch, because a rank's environment
must be there before torch is.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import pytest

from tests.runtime.ray_head import free_ports

DEADLINE_S = 600.0
GRACE_S = 5.0
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MASTER_ADDR": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "DS_ACCELERATOR": "cpu",
    "TOKENIZERS_PARALLELISM": "false",
}
IMPORTED = [
    "tests.train.jobs",
    "tests.train.state_jobs",
    "transformers.models.llama.modeling_llama",
    "accelerate",
    "peft",
    "functorch.compile",
    "torch._inductor",
]
"""Before the fork: what a first training would import."""


class Place(NamedTuple):
    """Who a rank is, as the trainer wants to know it."""

    rank: int
    num_ranks: int
    use_gpu: bool = False


class Gang:
    """`run(job, *args)` calls `job(place, *args)` on every rank and returns the results in rank order."""

    def __init__(self, num_ranks: int) -> None:
        self.num_ranks = num_ranks
        self._ranks: list[tuple[Any, Connection]] = []

    def run(self, job: Callable[..., Any], *args: Any, **options: Any) -> list[Any]:
        if not self._ranks:
            self._start()
        for _, pipe in self._ranks:
            pipe.send((job, args, options))
        answers: dict[int, tuple[Any, str]] = {}
        deadline = time.monotonic() + DEADLINE_S
        while len(answers) < self.num_ranks and time.monotonic() < deadline:
            for rank, (process, pipe) in enumerate(self._ranks):
                if rank not in answers and pipe.poll(0.02):
                    answers[rank] = pipe.recv()
                elif rank not in answers and not process.is_alive():
                    answers[rank] = (None, f"the process ended with {process.exitcode}")
            if any(problem for _, problem in answers.values()):
                deadline = min(deadline, time.monotonic() + GRACE_S)  # the others may wait for a dead rank forever
        problems = [f"rank {rank}: {problem}" for rank, (_, problem) in sorted(answers.items()) if problem]
        if problems or len(answers) < self.num_ranks:
            self.close()
            raise RuntimeError("\n".join(problems) or f"only ranks {sorted(answers)} answered within the deadline")
        return [answers[rank][0] for rank in range(self.num_ranks)]

    def close(self) -> None:
        for process, pipe in self._ranks:
            pipe.close()
            process.kill()
            process.join()
        self._ranks = []

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(IMPORTED)
        (port,) = free_ports(1)  # bound only when torch is imported: none that the kernel may give away until then
        with pytest.MonkeyPatch.context() as patch:
            for name, value in ENVIRONMENT.items():
                patch.setenv(name, value)  # for the process that is forked, which the first start makes
            for rank in range(self.num_ranks):
                ours, theirs = context.Pipe()
                process = context.Process(target=_rank, args=(rank, self.num_ranks, port, theirs), daemon=True)
                process.start()
                theirs.close()
                self._ranks.append((process, ours))


def _rank(rank: int, num_ranks: int, port: int, pipe: Connection) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
    names |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"), num_ranks)
    os.environ.update({name: str(value) for name, value in names.items()})
    while True:
        try:
            job, args, options = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            pipe.send((job(Place(rank, num_ranks), *args, **options), ""))
        except Exception:  # noqa: BLE001 - whatever a job raises is the test's to read
            pipe.send((None, traceback.format_exc()))
