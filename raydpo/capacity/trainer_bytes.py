"""Bytes of one trainer rank, part by part, at the moments of a step in which most can live at one time.

Comes in: a `ZeroRank`, and what activations cost. Goes out: parts in bytes, on the device or on the host. Decision: four
moments of a step are looked at, and the largest is the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raydpo.capacity.zero_bytes import (
    ACCUMULATED,
    Moment,
    ZeroRank,
    bucket_at,
    flat_copy,
    gathered,
    gradients,
    head_gradient,
    masters,
    moments,
    offload_buffers,
    reduced,
    travelling,
    weights,
)
from raydpo.models.memory import ActivationCost

Parts = Mapping[str, float]
"""Name of a part -> bytes."""


@dataclass(frozen=True)
class Load:
    """A micro-batch. tokens: in it; answer_tokens: that this rank reads off; layers: that are recomputed; cost: of its
    activations; least_chunks: calls of the head at least, which under stage 3 are as many in every micro-batch; widened: bytes
    of rows of a 16-bit head that are float32 at one time, on a CPU."""

    tokens: int
    answer_tokens: int
    layers: int
    cost: ActivationCost
    least_chunks: int = 1
    widened: float = 0.0

    @property
    def num_chunks(self) -> int:
        return max(self.least_chunks, -(-self.answer_tokens // self.cost.chunk_tokens))

    @property
    def kept(self) -> float:
        share = self.layers / self.cost.num_layers if self.layers else 0.0
        return self.tokens * (self.cost.kept + share * (self.cost.kept_again - self.cost.kept))

    @property
    def passing(self) -> float:
        """The most that lives in the layers' backward pass on top of `kept`; below 0 where that is gone by then."""
        cost, is_again = self.cost, self.layers > 0
        kept = self.tokens * cost.passing if self.layers < cost.num_layers or not is_again else 0.0
        again = self.tokens * (cost.kept_again + cost.passing_again) - self.kept if is_again else 0.0
        return max(kept, again)

    @property
    def logits(self) -> float:
        return -(-self.answer_tokens // self.num_chunks) * self.cost.head


def at(rank: ZeroRank, load: Load, moment: Moment) -> dict[str, float]:
    """Everything that lives in one moment, host and device together; in the order of a table."""
    head, after = head_gradient(rank, load.num_chunks)
    device, host = offload_buffers(rank)
    is_held = rank.accumulates or rank.stage == 3 or moment in ("reduction", "update")
    held = 0.0 if rank.offload_optimizer and rank.stage == 2 else gradients(rank) * is_held
    sent = reduced(rank) + travelling(rank)
    is_early = rank.bucket < rank.trained  # a bucket is full, and is sent, while layers are at work
    extra = {"head": head, "layers": after + sent * is_early, "reduction": after + sent, "update": 0.0}
    kept = {"head": load.kept, "layers": max(0.0, load.kept + load.passing)}.get(moment, 0.0)
    copied = flat_copy(rank) + (reduced(rank) if not rank.offload_optimizer else 0.0)
    return {
        "weights": weights(rank),
        "gathered weights": gathered(rank) if moment != "update" else 0.0,
        "master weights": masters(rank),
        "optimizer": moments(rank),
        "gradients": held + extra[moment],
        "buffers": bucket_at(rank, moment) + (copied if moment == "update" else 0.0) + device + host,
        "activations": kept,
        "logits": load.logits + load.widened if moment == "head" else 0.0,
    }


def peak(rank: ZeroRank, load: Load) -> tuple[Moment, dict[str, float]]:
    """The moment of a step in which most lives, and its parts."""
    kinds: tuple[Moment, ...] = ("head", "layers", "reduction", "update")
    return max(((moment, at(rank, load, moment)) for moment in kinds), key=lambda found: sum(found[1].values()))


def on_host(rank: ZeroRank, parts: Parts) -> dict[str, float]:
    """Of the parts of a rank on a GPU, those that offload keeps in main memory."""
    found: dict[str, float] = {}
    if rank.offload_optimizer:
        found |= {"master weights": parts["master weights"], "optimizer": parts["optimizer"]}
        found["gradients"] = ACCUMULATED * rank.share if rank.stage == 3 else 0.0
        found["buffers"] = offload_buffers(rank)[1]
    if rank.offload_parameters:
        found["weights"] = parts["weights"]
    return {name: size for name, size in found.items() if size}


def on_device(rank: ZeroRank, parts: Parts) -> dict[str, float]:
    """What is left of them on the device."""
    host = on_host(rank, parts)
    return {name: max(0.0, size - host.get(name, 0.0)) for name, size in parts.items()}
