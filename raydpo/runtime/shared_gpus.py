"""GPUs that roles take turns on: one placement group of Ray, a bundle a GPU, in which the actors of all roles have their seats.

Comes in: how many GPUs. Goes out: the seat of an actor, by its number. Decision: an actor takes a tenth of its bundle's GPU and
no CPUs, so that one that sleeps and one that works hold the same device, which Ray shows to both by CUDA_VISIBLE_DEVICES. The
price: Ray no longer keeps roles from working on a device at once; whoever opens this has to give them turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from raydpo.runtime.sessions import current

SEAT_GPUS = 0.1
"""Of an actor, so at most ten processes of a run have the same GPU."""


@dataclass(frozen=True)
class Seat:
    """A share of bundle `index` of the group that all roles are in."""

    group: Any
    index: int


@contextmanager
def gpus_shared(num_gpus: int) -> Iterator[None]:
    """Until the end of the block, actors of the open session with a GPU each sit on the same `num_gpus` of them, the one with
    number i on GPU i modulo `num_gpus`; 0: nothing is shared. Raises ResourceError where Ray has no such GPUs in time."""
    with current().gpus_shared(num_gpus):
        yield
