"""How long a step and the reference take, by counts and a few coefficients that are stated with the answer.

Comes in: FLOPs of a forward (`raydpo.models.work`), bytes that are moved, what a device does in a second. Goes out: seconds.
Decision: arithmetic, communication and the update follow each other, because nothing of them overlaps by default; a device
reaches the stated share of its peak. Price: a figure within a factor of two at best, never a promise.
"""

from __future__ import annotations

from dataclasses import dataclass

from raydpo.capacity.lengths import Lengths
from raydpo.capacity.zero_bytes import ACCUMULATED, ZeroRank
from raydpo.models.layout import Layout
from raydpo.models.work import Work

RECOMPUTED = 4 / 3
"""FLOPs of a step with every layer recomputed, of one without."""
FROZEN = 2 / 3
"""FLOPs of a step whose weights but an adapter's are frozen: no gradient of theirs is computed."""


@dataclass(frozen=True)
class Speed:
    """flops: that one device (on a CPU: one core) does in a second in a step. link, memory: bytes a second between ranks, and
    of the memory that the update reads and writes. host: of that memory where the optimizer is offloaded."""

    flops: float
    link: float
    memory: float
    host: float


GPU = Speed(4e14, 5e10, 2e12, 2e10)
"""bfloat16 at 40 % of 1e15 FLOP/s; a link of 400 Gbit/s."""
CPU_CORE = Speed(3e10, 1e9, 5e9, 5e9)
"""float32 on one core."""


def step_s(
    work: Work,
    lengths: Lengths,
    layout: Layout,
    pairs: int,
    rank: ZeroRank,
    micro_batches: int,
    share: float,
    speed: Speed,
    exchanged: float = 0.0,
) -> dict[str, float]:
    """Seconds of one optimizer step of `pairs` examples. share: of the layers that are recomputed. exchanged: bytes that a rank
    sends in the forward passes of a step to those that share its sequences."""
    flops = pairs * example_flops(work, lengths, layout, training=True)
    flops *= (1 + share * (RECOMPUTED - 1)) * (FROZEN if rank.frozen > rank.trained else 1.0)
    touched = 7 * 4 * rank.share  # gradient, master and two moments are read, the last three written
    return {
        "arithmetic": flops / (rank.num_ranks * speed.flops),
        "communication": (moved_bytes(rank, micro_batches) + (2 + share) * exchanged) / speed.link,
        "update": touched / (speed.host if rank.offload_optimizer else speed.memory),
    }


def example_flops(work: Work, lengths: Lengths, layout: Layout, *, training: bool) -> float:
    """Of a mean example, forward alone or with its backward pass."""
    prompt, answer, num = lengths.prompt, lengths.answer, lengths.num_answers
    row = prompt + answer
    pairs = row**2 * num if layout == "padded" else row**2 + (num - 1) * answer * row
    count = work.step if training else work.forward
    return float(count(lengths.example(layout), num * answer, pairs))


def moved_bytes(rank: ZeroRank, micro_batches: int) -> float:
    """What one rank sends in a step: gradients once and updated weights once; under stage 3 the weights of all layers for each
    forward and backward pass."""
    others = (rank.num_ranks - 1) / rank.num_ranks
    gradient, whole = ACCUMULATED * rank.trained, rank.dtype_bytes * (rank.trained + rank.frozen)
    if rank.stage == 3:
        return others * micro_batches * (2 * whole + gradient)
    if rank.stage == 0:
        return others * 2 * gradient
    return others * (rank.dtype_bytes * rank.trained + gradient * (micro_batches if rank.stage == 2 else 1))


def reference_s(work: Work, lengths: Lengths, layout: Layout, workers: int, speed: Speed) -> float:
    """Seconds to score every example once."""
    examples = lengths.examples + lengths.held_out
    return examples * example_flops(work, lengths, layout, training=False) / (workers * speed.flops)
