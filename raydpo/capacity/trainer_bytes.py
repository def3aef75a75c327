"""Bytes of one trainer rank, part by part, at the moments of a step in which most can live at one time.

Comes in: counts of weights, the ZeRO stage and where it puts things, and what activations cost. Goes out: parts in bytes, on
the device or on the host. Decision: each part is a small function with its coefficient, as DeepSpeed 0.19 and
`raydpo.train.deepspeed_engine` allocate it; storages are counted, not what an allocator rounds them up to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from raydpo.models.memory import ActivationCost

Parts = Mapping[str, float]
"""Name of a part -> bytes."""
MASTER, MOMENTS = 4, 8
"""Bytes of a trained weight: its float32 copy, and Adam's two moments."""
ACCUMULATED = 4
"""Bytes of an accumulated gradient."""
LIVE_NUMBERS = 10**9
"""stage3_max_live_parameters of DeepSpeed: gathered weights of a rank at most, but for a larger layer."""
BUCKET_NUMBERS = 5 * 10**8
"""reduce_bucket_size of DeepSpeed where our config names none."""
Moment = Literal["head", "layers", "update"]


@dataclass(frozen=True)
class Rank:
    """What decides the bytes of one of `num_ranks` ranks.

    stage: of ZeRO, as it is run (0 in bfloat16 is 1).
    dtype_bytes: of a weight.
    trained, frozen: numbers of weights; largest, head: of the largest trained tensor and of a trained head.
    is_tied: whether the head is the embedding.
    bucket: numbers of the buffer in which gradients are reduced.
    accumulates: whether a rank has more than one micro-batch a step.
    """

    stage: int
    num_ranks: int
    dtype_bytes: int
    trained: int
    frozen: int
    largest: int
    head: int
    is_tied: bool
    bucket: int
    offload_optimizer: bool = False
    offload_parameters: bool = False
    accumulates: bool = True

    @property
    def share(self) -> float:
        """Trained weights that this rank updates."""
        return self.trained / self.num_ranks if self.stage else float(self.trained)

    @property
    def is_half(self) -> bool:
        return self.dtype_bytes == 2


@dataclass(frozen=True)
class Load:
    """A micro-batch. tokens, answer_tokens: in it; layers: that are recomputed; cost: of its activations; least_chunks: calls
    of the head at least, which under stage 3 are as many in every micro-batch."""

    tokens: int
    answer_tokens: int
    layers: int
    cost: ActivationCost
    least_chunks: int = 1

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


def weights(rank: Rank) -> float:
    """In the compute dtype; a share of them under stage 3."""
    numbers = rank.trained + rank.frozen
    return rank.dtype_bytes * (numbers / rank.num_ranks if rank.stage == 3 else numbers)


def gathered(rank: Rank) -> float:
    """Weights that stage 3 has brought together for the layers at work. Of one rank nothing is copied."""
    if rank.stage != 3 or (rank.num_ranks == 1 and not rank.offload_parameters):
        return 0.0
    return rank.dtype_bytes * min(rank.trained + rank.frozen, max(LIVE_NUMBERS, rank.largest))


def masters(rank: Rank) -> float:
    """Float32 copies of the weights that are updated; stage 0 has none."""
    return MASTER * rank.share if rank.stage else 0.0


def moments(rank: Rank) -> float:
    return MOMENTS * rank.share


def gradients(rank: Rank) -> float:
    """What is accumulated over micro-batches."""
    if rank.stage == 0:
        return ACCUMULATED * rank.trained
    if rank.stage == 1:  # in bfloat16 whole float32 gradients beside those of the backward pass
        return (ACCUMULATED + rank.dtype_bytes if rank.is_half else rank.dtype_bytes) * rank.trained
    return ACCUMULATED * rank.share


def bucket(rank: Rank) -> float:
    """The buffer in which gradients are put together to be reduced."""
    if rank.stage == 0 or (rank.stage == 1 and rank.is_half):
        return 0.0
    return rank.dtype_bytes * rank.bucket


def bucket_at(rank: Rank, moment: Moment) -> float:
    """The same at one moment: stage 3 keeps it, 1 and 2 make it anew in each backward pass of the layers."""
    return bucket(rank) if rank.stage == 3 or moment == "layers" else 0.0


def reduced(rank: Rank) -> float:
    """Stage 1 and 2 in float32: this rank's part of the gradient of one micro-batch before it is added to the others."""
    has_part = rank.stage in (1, 2) and not rank.is_half
    return rank.dtype_bytes * rank.share if has_part else 0.0


def flat_copy(rank: Rank) -> float:
    """This rank's part of the gradient in one piece, for the update."""
    if rank.stage == 0 or (rank.stage == 1 and rank.is_half):
        return 0.0
    return 0.0 if rank.offload_optimizer and rank.stage < 3 else ACCUMULATED * rank.share


def head_gradient(rank: Rank, num_chunks: int) -> tuple[float, float]:
    """(while the head is at work, afterwards): a gradient of the head that is not yet added to what is accumulated. Chunks of
    the head are summed before; a tied one waits for the embedding's."""
    one = rank.head * rank.dtype_bytes
    return float(one * min(2, num_chunks)), float(one * rank.is_tied)


def offload_buffers(rank: Rank) -> tuple[float, float]:
    """(device, host) of moving gradients under `offload_optimizer`."""
    if not rank.offload_optimizer:
        return 0.0, 0.0
    if rank.stage == 3:
        return 0.0, ACCUMULATED * rank.share
    piece = rank.dtype_bytes * rank.largest
    added = ACCUMULATED * rank.share if rank.accumulates and rank.stage > 1 else 0.0
    return float(piece), piece + (ACCUMULATED + rank.dtype_bytes) * rank.share + added


def at(rank: Rank, load: Load, moment: Moment) -> dict[str, float]:
    """Everything that lives in one moment, host and device together; in the order of a table."""
    is_flat = rank.stage in (1, 2)
    head, after = head_gradient(rank, load.num_chunks)
    device, host = offload_buffers(rank)
    held = gradients(rank) if rank.accumulates or moment == "update" or rank.stage == 3 or rank.is_half else 0.0
    if rank.offload_optimizer and rank.stage == 2:
        held = 0.0  # they are in the buffers on the host
    extra = {"head": head, "layers": after + (reduced(rank) if rank.bucket < rank.trained else 0.0), "update": 0.0}
    acts = {"head": load.kept, "layers": max(0.0, load.kept + load.passing), "update": 0.0}[moment]
    copied = flat_copy(rank) + (reduced(rank) if is_flat and not rank.offload_optimizer else 0.0)
    return {
        "weights": weights(rank),
        "gathered weights": gathered(rank) if moment != "update" else 0.0,
        "master weights": masters(rank),
        "optimizer": moments(rank),
        "gradients": held + extra[moment],
        "buffers": bucket_at(rank, moment) + (copied if moment == "update" else 0.0) + device + host,
        "activations": acts,
        "logits": load.logits if moment == "head" else 0.0,
    }


def peak(rank: Rank, load: Load) -> tuple[Moment, dict[str, float]]:
    """The moment of a step in which most lives, and its parts."""
    found: list[tuple[Moment, dict[str, float]]] = [
        (moment, at(rank, load, moment)) for moment in ("head", "layers", "update")
    ]
    return max(found, key=lambda each: sum(each[1].values()))


def on_host(rank: Rank, parts: Parts) -> dict[str, float]:
    """Of the parts of a rank on a GPU, those that offload keeps in main memory."""
    found: dict[str, float] = {}
    if rank.offload_optimizer:
        found |= {"master weights": parts["master weights"], "optimizer": parts["optimizer"]}
        found["gradients"] = ACCUMULATED * rank.share if rank.stage == 3 else 0.0
        found["buffers"] = offload_buffers(rank)[1]
    if rank.offload_parameters:
        found["weights"] = parts["weights"]
    return {name: size for name, size in found.items() if size}


def on_device(rank: Rank, parts: Parts) -> dict[str, float]:
    """What is left of them on the device."""
    host = on_host(rank, parts)
    return {name: max(0.0, size - host.get(name, 0.0)) for name, size in parts.items()}
