"""A model -> what one rank of ZeRO-3 keeps of it, one tensor at a time, before DeepSpeed makes an engine of it.

Comes in: a module on the CPU. Goes out: the same module, of whose parameters every rank holds its part.
Decision: without this DeepSpeed moves the whole module to the device and shards it there, so that a model which fits no GPU
could not start; buffers, which are never sharded, are moved by hand. Price: DeepSpeed's `zero.Init` is called directly.
"""

from __future__ import annotations

from typing import Any

from torch import nn


def shard(module: nn.Module, config: dict[str, Any]) -> None:
    """Split every parameter of `module` over the ranks and move its buffers to this rank's device. Collective.

    config: of DeepSpeed, stage 3.
    """
    import deepspeed

    init = deepspeed.zero.Init(module=module, config_dict_or_path=config)
    for buffer in module.buffers():
        buffer.data = buffer.data.to(init.local_device)
