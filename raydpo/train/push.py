"""Weight sync, the trainers' side: the weights after the last step as a stream of parts, and log-probs of a few sequences.

What goes out: a `PolicyProbe`, then `WeightsPart` events of about `PART_BYTES`, for those who keep a copy of the policy.
Decision: weights are gathered one by one (ZeRO-3) and travel in parts, so that rank 0 holds one part at a time and never
a second model. They keep the names and shapes that they have in memory: whoever writes or reads files translates. Of a LoRA
run only merged matrices of adapted layers and modules that are trained whole travel, and what packed matrices unpack to;
what the copy needs else it has.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from raydpo.models.merged_matrix import adapted_matrices, copied_tensors, factors, merged_matrix, unadapted_layers
from raydpo.models.packed import as_saved, matrix_of
from raydpo.schema.rank_events import Alive, PolicyProbe, WeightsPart
from raydpo.train.export import gathered
from raydpo.train.policy_probe import policy_probe
from raydpo.train.trainer import Trainer

PART_BYTES = 32 * 2**20


@torch.no_grad()
def push(trainer: Trainer) -> Iterator[PolicyProbe | WeightsPart | Alive]:
    """Events for rank 0; the others take part. Collective."""
    yield policy_probe(trainer.engine, trainer.train)
    yield from parts(trainer.engine.engine.module.model, trainer.engine.stage, trainer.rank.rank == 0)


def parts(model: Any, stage: int, is_writer: bool, part_bytes: int = PART_BYTES) -> Iterator[WeightsPart | Alive]:
    """All weights of `model`, or what its adapter changes; `Alive` in place of each part but on the writer. Collective.

    stage: of ZeRO. A part is full when it has `part_bytes`, so every rank ends it at the same weight.
    """
    part: dict[str, Tensor] = {}
    num_bytes, is_partial = 0, hasattr(model, "peft_config")
    for name, weights, merge in _plan(model):
        with gathered(weights, stage):
            value = merge()
            num_bytes += value.numel() * value.element_size()
            if is_writer:
                part[name] = value.to("cpu", copy=True)
        if num_bytes >= part_bytes:
            yield WeightsPart(part, False, is_partial) if is_writer else Alive(0)
            part, num_bytes = {}, 0
    yield WeightsPart(part, True, is_partial) if is_writer else Alive(0)


def _plan(model: Any) -> Iterator[tuple[str, list[Tensor], Any]]:
    """(name in memory, without the adapter; weights to gather, function that returns the tensor to send) of each tensor."""
    if not hasattr(model, "peft_config"):
        for name, parameter in model.named_parameters():
            yield name, [parameter], parameter.detach
        kept = model.state_dict().keys()
        yield from ((name, [], value.detach) for name, value in model.named_buffers() if name in kept)
        return
    for name, module, adapter, base in adapted_matrices(model):
        yield name, [base, *factors(module, adapter)], partial(merged_matrix, module, adapter, base)
    for name, layer in unadapted_layers(model):
        yield name, [layer.weight], partial(_unpacked, layer)
    for name, parameter in copied_tensors(model):
        yield name, [parameter], parameter.detach


def _unpacked(layer: Any) -> Tensor:
    return as_saved(layer, matrix_of(layer.weight))
