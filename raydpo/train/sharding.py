"""A model -> what one rank of ZeRO-3 keeps of it, one tensor at a time, before DeepSpeed makes an engine of it.

Comes in: a module on the CPU, with its weights or with the places where they lie. Goes out: the same module, of whose
parameters every rank holds its part. Decision: DeepSpeed would move the whole module to the device and shard it there, so that
a model which fits no GPU could not start; a part that a rank reads is never on another one. Price: DeepSpeed's `zero.Init` is
called directly, and a name of it that is its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from raydpo.models.hollow import HollowModel
from raydpo.models.magnitudes import Magnitudes
from raydpo.models.slices import Readable, SliceReader, not_finite


def shard(module: nn.Module, config: dict[str, Any], source: HollowModel | None = None) -> None:
    """Split every parameter of `module` over the ranks and move its buffers to this rank's device. Collective.

    config: of DeepSpeed, stage 3. source: of weights that are not in `module`; parameters without a place are in it, equal on
    all ranks. Raises ConfigError, on all ranks alike, for weights that are not finite.
    """
    import deepspeed

    group = None  # of ZeRO++, which can be made once
    if source is not None:
        init, places = deepspeed.zero.Init(config_dict_or_path=config), source.places_of(module)
        group, magnitudes = init.zero_param_process_group, Magnitudes(module)
        for parameter in module.parameters():
            if id(parameter) in places:
                _read_part(init, parameter, places[id(parameter)], source.reader, magnitudes)
        source.reader.close()
        refuse_not_finite_anywhere(source.reader.not_finite)
        magnitudes.gather(init.local_device)
    init = deepspeed.zero.Init(module=module, config_dict_or_path=config, zero_param_parallel_group=group)
    for buffer in module.buffers():
        buffer.data = buffer.data.to(init.local_device)


def _read_part(init: Any, parameter: Any, place: Readable, reader: SliceReader, magnitudes: Magnitudes) -> None:
    """Make a sharded parameter of one without weights. Nothing is sent."""
    whole = torch.empty(parameter.shape, dtype=parameter.dtype)  # memory that nobody writes to takes none
    parameter.data = whole
    init._convert_to_deepspeed_param(parameter)
    size = -(-whole.numel() // parameter.ds_zero_partition_world_size)
    first = min(size * parameter.ds_zero_partition_rank, whole.numel())
    part = whole.view(-1)[first : first + size]
    place.read(reader, first, part)
    magnitudes.measure(whole, id(parameter), place, first, len(part), reader)
    parameter.partition()
    if parameter.ds_tensor.ds_numel != size:
        raise RuntimeError(f"DeepSpeed cut {place.name} into parts of {parameter.ds_tensor.ds_numel}, not {size}")
    parameter.data = parameter.data.to(init.local_device)


def refuse_not_finite_anywhere(names: list[str]) -> None:
    """Raise ConfigError, on all ranks alike, for the weights that any rank names. Collective."""
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, names)
    if told := sorted({name for each in found for name in each}):
        raise not_finite(told)
