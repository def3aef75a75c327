"""What a rank holds of the training state, as views of its memory by parameter name, whatever the ZeRO stage.

Comes in: a DeepSpeed engine. Goes out: fragments that can be copied from or into; after the latter, `refresh` makes the
weights that forwards read follow. Decision: DeepSpeed's own flat buffers are read where they lie, so that a checkpoint
gathers nothing; the price is a handful of its names (tests/stack/private_names.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from raydpo.train.state_files import Fragment, Shape

Parameters = list[tuple[str, nn.Parameter]]


def trained(engine: Any) -> Parameters:
    """Name and parameter of everything that trains, tied weights once."""
    named = engine.module.named_parameters()
    return [(name, p) for name, p in named if p.requires_grad and math.prod(whole_shape(p))]


def whole_shape(parameter: Any) -> Shape:
    """Of all of a parameter, also where only a part of it is here."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def held(engine: Any, stage: int) -> list[Fragment]:
    """Everything that this rank updates. Under stage 0 that is all, on every rank."""
    kinds = {0: _parameters, 1: _flat, 2: _flat, 3: _partitions}
    return list(kinds[stage](trained(engine), engine.optimizer))


def refresh(engine: Any, stage: int) -> None:
    """Make the weights that forwards read those of the float32 copies. Collective."""
    zero = engine.optimizer
    if stage in (1, 2):
        zero.update_lp_params()
    elif stage == 3:
        zero.checkpoint_event_prologue()
        for group in range(len(zero.fp32_partitioned_groups_flat)):
            zero._reassign_or_swap_out_partitioned_parameters(group)
        zero.checkpoint_event_epilogue()


def _parameters(named: Parameters, adam: Any) -> Iterator[Fragment]:
    """Stage 0: the weights themselves are in float32."""
    for name, parameter in named:
        yield _fragment(name, parameter, adam, parameter, (0, 0, parameter.numel()))


def _flat(named: Parameters, zero: Any) -> Iterator[Fragment]:
    """Stage 1 and 2: all parameters in a row, of which a rank updates an equal part; the last one is padded."""
    for name, parameter in named:
        mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            continue
        flat = zero.single_partition_of_fp32_groups[mapping.param_group_index]
        there = mapping.hp_fragment_address
        place = (mapping.lp_fragment_address.start, there.start, there.numel)
        yield _fragment(name, parameter, zero.optimizer, flat, place)


def _partitions(named: Parameters, zero: Any) -> Iterator[Fragment]:
    """Stage 3: of every parameter an equal part, padded on the last ranks."""
    parameter: Any
    for name, parameter in named:
        group, offset, size = zero.grad_position[zero.get_param_id(parameter)]
        start = size * torch.distributed.get_rank()
        count = min(size, parameter.ds_numel - start)
        if count > 0:
            flat = zero.fp32_partitioned_groups_flat[group]
            yield _fragment(name, parameter, zero.optimizer, flat, (start, offset, count))


def _fragment(name: str, parameter: Any, adam: Any, flat: Tensor, place: tuple[int, int, int]) -> Fragment:
    """place: first element in the parameter, first element in `flat`, and their number."""
    start, offset, count = place
    state = _moments(adam, flat)
    values = {"master": flat.detach(), "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
    cut = {kind: value.view(-1).narrow(0, offset, count) for kind, value in values.items()}
    return Fragment(name, whole_shape(parameter), start, state["step"], cut)


def _moments(adam: Any, parameter: Tensor) -> dict[str, Tensor]:
    """Adam's state of a tensor; before its first step that which torch would give it there."""
    state: dict[str, Any] = adam.state[parameter]
    if not state:
        dtype = torch.float32 if isinstance(adam, torch.optim.AdamW) else torch.int64
        state["step"] = torch.zeros((), dtype=dtype, device=parameter.device)
        for kind in ("exp_avg", "exp_avg_sq"):
            state[kind] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    elif isinstance(state["step"], int):  # DeepSpeed's Adam counts so, and goes on with a tensor of an integer as well
        state["step"] = torch.tensor(state["step"])
    return state
