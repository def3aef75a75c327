"""What a process group does about a hang: less than the driver, and later, so that the error that names the rank comes first.

Comes in: the deadline of the driver (`train.hang_timeout_s`) and the folder of the run. Goes out: time-outs of all process
groups of this process, and variables of NCCL's flight recorder (untested: it takes two GPUs).
Decision: torch would end a rank after 10 minutes (NCCL) or 30 (gloo), and DeepSpeed after 10, with an error of whichever rank
waits; theirs is twice the driver's deadline and a minute, for the case that the driver cannot act. DeepSpeed makes groups
without telling a time-out, so it is set on those that are there.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import torch

_NUM_RECORDED = 2000
"""Collectives that NCCL's flight recorder keeps for each rank."""


def group_timeout(hang_timeout_s: float) -> timedelta:
    """Of a process group whose ranks the driver gives `hang_timeout_s`."""
    return timedelta(seconds=2 * hang_timeout_s + 60)


def give_time(timeout: timedelta) -> None:
    """Set the time-out of every process group of this process."""
    c10d = torch.distributed.distributed_c10d
    for group in list(c10d._world.pg_map):
        c10d._set_pg_timeout(timeout, group)


def record_flights(folder: Path) -> None:
    """Let NCCL remember its last collectives, and write them to `folder`/rank_N when it times out or is asked to (which the
    driver does when a rank hangs). Variables that are set stay. Before the group is made."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TORCH_NCCL_TRACE_BUFFER_SIZE", str(_NUM_RECORDED))
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    os.environ.setdefault("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", str(folder / "rank_"))
