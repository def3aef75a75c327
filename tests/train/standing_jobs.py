"""Runs one after the other on ranks that keep what they built. Module-level functions, sent by name to a Gang."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from raydpo.train import TrainSpec, loop
from tests.train.gang import Place


class Keeper(NamedTuple):
    """A place with what it keeps."""

    rank: int
    num_ranks: int
    use_gpu: bool
    kept: dict[str, Any]


def train_in_turn(place: Place, specs: Sequence[TrainSpec]) -> list[list[Any]]:
    """Events of each run."""
    keeper = Keeper(place.rank, place.num_ranks, False, {})
    found = []
    for spec in specs:
        found.append(list(loop.run(keeper, spec)))
        if place.num_ranks > 1:
            torch.distributed.barrier()  # rank 0 has written what the next run may start from
    for built in keeper.kept.values():
        built.engine.close(keeps_group=place.num_ranks > 1)
    return found
