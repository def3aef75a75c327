"""What one rank holds of weights, gradients and optimizer under each ZeRO stage. No torch.

Comes in: counts of weights, the stage and where it puts things. Goes out: bytes. Decision: each part is a small function with
its coefficient, as DeepSpeed 0.19 under `raydpo.train.deepspeed_settings` allocates it; storages are counted, not what an
allocator rounds them up to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MASTER, MOMENTS = 4, 8
"""Bytes of a trained weight: its float32 copy, and Adam's two moments."""
PACKED = 4.127 / 8
"""Bytes of a weight in nf4 with double quantisation: 4 bits, and the scales of blocks of 64."""
ACCUMULATED = 4
"""Bytes of an accumulated gradient."""
LIVE_NUMBERS = 10**9
"""stage3_max_live_parameters of DeepSpeed: gathered weights of a rank at most, but for a larger layer."""
Moment = Literal["head", "layers", "reduction", "update"]


@dataclass(frozen=True)
class ZeroRank:
    """What decides the bytes of one of `num_ranks` ranks.

    stage: of ZeRO, as it is run (0 and 1 in bfloat16 are 2).
    dtype_bytes: of a weight.
    trained, frozen: numbers of weights; largest, head: of the largest trained tensor and of a trained head.
    is_tied: whether the head is the embedding.
    bucket: numbers of the buffer in which gradients are reduced.
    accumulates: whether a rank has more than one micro-batch a step.
    packed: frozen weights in 4 bits.
    overlaps: whether one bucket is filled while another is reduced.
    on_gpu: whether layers are at work on a GPU.
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
    packed: int = 0
    overlaps: bool = False
    on_gpu: bool = False

    @property
    def share(self) -> float:
        """Trained weights that this rank updates."""
        return self.trained / self.num_ranks if self.stage else float(self.trained)

    @property
    def is_half(self) -> bool:
        return self.dtype_bytes == 2


def weights(rank: ZeroRank) -> float:
    """In the compute dtype but for those that are packed; a share of them under stage 3."""
    numbers = rank.trained + rank.frozen - rank.packed
    return (rank.dtype_bytes * numbers + PACKED * rank.packed) / (rank.num_ranks if rank.stage == 3 else 1)


def gathered(rank: ZeroRank) -> float:
    """Weights that stage 3 has brought together for the layers at work. Of one rank nothing is copied but to a GPU."""
    if rank.stage != 3 or (rank.num_ranks == 1 and not (rank.offload_parameters and rank.on_gpu)):
        return 0.0
    return rank.dtype_bytes * min(rank.trained + rank.frozen, max(LIVE_NUMBERS, rank.largest))


def masters(rank: ZeroRank) -> float:
    """Float32 copies of the weights that are updated; stage 0 has none."""
    return MASTER * rank.share if rank.stage else 0.0


def moments(rank: ZeroRank) -> float:
    return MOMENTS * rank.share


def gradients(rank: ZeroRank) -> float:
    """What is accumulated over micro-batches."""
    if rank.stage == 0:
        return ACCUMULATED * rank.trained
    if rank.stage == 1:
        return rank.dtype_bytes * rank.trained
    return ACCUMULATED * rank.share


def bucket(rank: ZeroRank) -> float:
    """The buffers in which gradients are put together to be reduced: in float32 under stage 3, two where they overlap."""
    if rank.stage == 0:
        return 0.0
    if rank.stage == 3:
        return float(ACCUMULATED * rank.bucket)
    return float(rank.dtype_bytes * rank.bucket * (2 if rank.overlaps else 1))


def travelling(rank: ZeroRank) -> float:
    """A copy of a full bucket on its way between ranks: in float32 where the bucket is not, and of its parts under stage 3."""
    is_copied = rank.stage == 3 or (rank.stage > 0 and rank.is_half)
    return float(ACCUMULATED * rank.bucket) if is_copied else 0.0


def bucket_at(rank: ZeroRank, moment: Moment) -> float:
    """The same at one moment: stage 3 keeps it, 2 makes it anew for each backward pass of layers, 1 keeps it to the last."""
    is_kept = rank.stage == 3 or (rank.stage == 1 and rank.accumulates and moment == "head")
    return bucket(rank) if is_kept or moment in ("layers", "reduction") else 0.0


def reduced(rank: ZeroRank) -> float:
    """Stage 1 and 2 in float32: this rank's part of the gradient of one micro-batch before it is added to the others."""
    has_part = rank.stage in (1, 2) and not rank.is_half
    return rank.dtype_bytes * rank.share if has_part else 0.0


def flat_copy(rank: ZeroRank) -> float:
    """This rank's part of the gradient in one piece, for the update."""
    if rank.stage == 0:
        return 0.0
    return 0.0 if rank.offload_optimizer and rank.stage < 3 else ACCUMULATED * rank.share


def head_gradient(rank: ZeroRank, num_chunks: int) -> tuple[float, float]:
    """(while the head is at work, afterwards): a gradient of the head that is not yet added to what is accumulated. Chunks of
    the head are summed before; a tied one waits for the embedding's."""
    one = rank.head * rank.dtype_bytes
    return float(one * min(2, num_chunks)), float(one * rank.is_tied)


def offload_buffers(rank: ZeroRank) -> tuple[float, float]:
    """(device, host) of moving gradients under `offload_optimizer`."""
    if not rank.offload_optimizer:
        return 0.0, 0.0
    if rank.stage == 3:
        return 0.0, ACCUMULATED * rank.share
    piece = rank.dtype_bytes * rank.largest
    added = ACCUMULATED * rank.share if rank.accumulates and rank.stage > 1 else 0.0
    return float(piece), piece + (ACCUMULATED + rank.dtype_bytes) * rank.share + added
