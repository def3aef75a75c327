"""Weight sync, the trainers' side: the weights after the last step, and log-probs of a few sequences.

What goes out: a `PolicyProbe`, then, if somebody takes them, `SharedWeights`, a file of this node that every rank wrote its
share of. Where ranks are on several nodes, or there is no room for it, `WeightsPart` events of about `PART_BYTES` through the
driver in its place, which is said. Decision: those are gathered one by one (ZeRO-3), so that rank 0 holds one part at a time
and never a second model. Tensors keep the names and shapes that they have in memory: whoever writes or reads files translates.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from raydpo.schema.rank_events import Alive, Noted, PolicyProbe, WeightsPart
from raydpo.schema.shared_weights import SharedWeights
from raydpo.train.export import gathered
from raydpo.train.policy_probe import policy_probe
from raydpo.train.pushed_tensors import pushed_tensors
from raydpo.train.shared_push import share
from raydpo.train.trainer import Trainer

PART_BYTES = 32 * 2**20


@torch.no_grad()
def push(trainer: Trainer) -> Iterator[PolicyProbe | SharedWeights | Noted | WeightsPart | Alive]:
    """Events for rank 0; the others take part. Collective."""
    yield policy_probe(trainer.engine, trainer.train)
    if not trainer.spec.sends_weights:
        return
    model, stage, rank = trainer.engine.engine.module.model, trainer.engine.stage, trainer.rank
    start = trainer.spec.model.here() if trainer.spec.model.base is None else None
    shared = share(model, stage, rank.rank, rank.num_ranks, start)
    if isinstance(shared, SharedWeights):
        if shared.is_partial and not shared.adapted:
            yield Noted(
                "merged matrices go to the generators, not the adapter alone: its base is packed, or an adapter itself"
            )
        yield shared
        return
    yield Noted(f"weights go to the generators through the driver: {shared}")
    yield from parts(model, stage, rank.rank == 0)


def parts(model: Any, stage: int, is_writer: bool, part_bytes: int = PART_BYTES) -> Iterator[WeightsPart | Alive]:
    """All weights of `model`, or what its adapter changes; `Alive` in place of each part but on the writer. Collective.

    stage: of ZeRO. A part is full when it has `part_bytes`, so every rank ends it at the same weight.
    """
    part: dict[str, Tensor] = {}
    num_bytes, is_partial = 0, hasattr(model, "peft_config")
    for each in pushed_tensors(model):
        with gathered(each.weights, stage):
            value = each.merge()
            num_bytes += value.numel() * value.element_size()
            if is_writer:
                part[each.name] = value.to("cpu", copy=True)
        if num_bytes >= part_bytes:
            yield WeightsPart(part, False, is_partial) if is_writer else Alive(0)
            part, num_bytes = {}, 0
    yield WeightsPart(part, True, is_partial) if is_writer else Alive(0)
