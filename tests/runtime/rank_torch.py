"""Ranks that use torch.distributed. torch is imported with this module, as a trainer's module does it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from raydpo.runtime import RankContext
from raydpo.train.rendezvous import init_method
from tests.runtime import rank_work


def sum_over_ranks(context: RankContext) -> Iterator[float]:
    """A real all-reduce over gloo, with nothing but the environment to find the peers."""
    dist.init_process_group("gloo")
    total = torch.tensor([float(context.rank + 1)])
    dist.all_reduce(total)
    yield float(total)
    dist.destroy_process_group()


def fail_in_collective(context: RankContext, how: str) -> Iterator[str]:
    """Rank 1 fails; the others wait for it in a barrier."""
    dist.init_process_group("gloo")
    dist.barrier()
    yield "ready"
    if context.rank == 1:
        if how == "raise":
            raise ZeroDivisionError("division in the loss")
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "sleep":
            rank_work.take_a_very_long_nap()
    dist.barrier()
    yield "past the barrier"


def meet_and_wait(context: RankContext, folder: str) -> Iterator[int]:
    """A process group as a trainer makes it, that stays until there is a file `go` in `folder`."""
    dist.init_process_group("gloo", init_method=init_method())
    dist.barrier()
    yield os.getpid()
    while not (Path(folder) / "go").exists():
        time.sleep(0.01)
    dist.barrier()
    dist.destroy_process_group()
