"""The two sides behind one face, and what both are told.

Decision: both load the same folder, in the same dtype, with the same number of threads and denormals flushed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from benchmarks.step.shapes import Pair

SIDES = ("raydpo", "TRL")


@dataclass(frozen=True)
class Spec:
    """folder: of the model. tokens: of a micro-batch of raydpo. device_pairs: TRL's device batch."""

    folder: str
    dtype: str
    device: str
    tokens: int
    device_pairs: int
    checkpointing: bool = False
    lora: bool = False
    threads: int = 2


class Side(Protocol):
    """References are per-token log-probs of each pair's chosen and rejected answer, in turn."""

    model: Any

    def reference(self, pairs: Sequence[Pair]) -> Sequence[Any]: ...
    def prepare(self, pairs: Sequence[Pair], reference: Sequence[np.ndarray]) -> Any: ...
    def step(self, prepared: Any) -> float: ...


def load_side(name: str, spec: Spec) -> Side:
    """raydpo or TRL with the model of `spec`."""
    if name == "raydpo":
        from benchmarks.step.ours import Ours

        return Ours(spec)
    from benchmarks.step.theirs import Theirs

    return Theirs(spec)


def no_reference(pairs: Sequence[Pair]) -> list[np.ndarray]:
    """References of 0 nats, where only the cost of a step matters."""
    return [np.zeros(len(answer), np.float32) for pair in pairs for answer in pair.answers]


def prepare_torch(spec: Spec) -> None:
    torch.set_num_threads(spec.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)


def synchronize(spec: Spec) -> None:
    if spec.device == "cuda":
        torch.cuda.synchronize()
