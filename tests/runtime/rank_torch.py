"""Ranks that use torch.distributed. torch is imported with this module, as a trainer's module does it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import torch
import torch.distributed as dist

from raydpo.runtime import RankContext
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
