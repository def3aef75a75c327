"""What each of several ranks takes, counted: the most bytes of tensors that live at one time in its steps.

Comes in: a config with `train.num_workers`. Goes out: bytes of the rank that takes most. Decision: a rank is a process that
runs the loop of a training and nothing else, on gloo; buffers that gloo itself allocates are no tensors and not counted.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any, NamedTuple

from raydpo.config import Config

DEADLINE_S = 600.0


class Place(NamedTuple):
    """Who a rank is, as the trainer wants to know it."""

    rank: int
    num_ranks: int
    use_gpu: bool = False


def counted_rank(rank: int, num_ranks: int, port: int, config: Config, results: Any) -> None:
    """One rank: puts (rank, bytes)."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_SIZE": str(num_ranks), "OMP_NUM_THREADS": "1"}
    os.environ |= {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "DS_ACCELERATOR": "cpu"}
    import torch

    from benchmarks.counted_training import NUM_STEPS, Everything
    from raydpo.models.resolve import ResolvedModel
    from raydpo.train import TrainSpec, loop

    torch.set_num_threads(1)
    run, everything = Path(config.run.dir), Everything()
    model = ResolvedModel("start", None, Path(config.model.path))
    spec = TrainSpec(config, model, config.model.dtype, run / "data", run / "staging" / "attempt")
    with everything:
        for event in loop.run(Place(rank, num_ranks), spec):
            if getattr(event, "step", 0) == NUM_STEPS:  # the step is over, and nothing of a checkpoint is copied
                break
        results.put((rank, max(everything.trace)))


def most_of_a_rank(config: Config) -> int:
    """Prepares the data, trains two steps on `train.num_workers` ranks. Raises queue.Empty where one ends without a count."""
    from raydpo.data import prepare

    num_ranks, run = config.train.ranks[0], Path(config.run.dir)
    prepare(config, config.model.path, run / "data")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    places = [(rank, num_ranks, port, config, results) for rank in range(num_ranks)]
    ranks = [context.Process(target=counted_rank, args=place, daemon=True) for place in places]
    for each in ranks:
        each.start()
    found: dict[int, int] = dict(results.get(timeout=DEADLINE_S) for _ in ranks)
    for each in ranks:
        each.join()
    return max(found.values())
