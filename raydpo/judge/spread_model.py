"""The layers of a reward model over the GPUs of its worker, in order: activations go from each to the next.

Comes in: a classifier on the CPU, and how many bytes each GPU has free. Goes out: the same, each layer on one GPU. Decision:
accelerate's own map and hooks; GPUs are filled evenly, because all of them need room for activations; nothing is left in main
memory or on the disk, where every forward would fetch it. Price: one GPU computes at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from raydpo.errors import ResourceError

SHARE = 0.9
"""Of the free memory of a GPU, for weights at most."""


def spread(model: Any, num_gpus: int) -> Any:
    """`model` over the first `num_gpus` GPUs that this process sees. Raises ResourceError where it does not fit."""
    from accelerate import dispatch_model

    free_bytes = {number: torch.cuda.mem_get_info(number)[0] for number in range(num_gpus)}
    return dispatch_model(
        model, layer_map(model, free_bytes), skip_keys=getattr(model, "_skip_keys_device_placement", None)
    )


def layer_map(model: Any, free_bytes: Mapping[int, int]) -> dict[str, int]:
    """Module -> number of its GPU, for every weight and buffer of `model`. Raises ResourceError."""
    from accelerate import infer_auto_device_map

    whole = list(getattr(model, "_no_split_modules", None) or ())
    if not whole:
        raise ResourceError(
            f"judge.gpus_per_worker: {len(free_bytes)}; transformers does not say between which layers {type(model).__name__} "
            "may be cut. Nothing was scored. Set gpus_per_worker to 1."
        )
    sizes = [
        _bytes(module) for module in model.modules() if type(module).__name__ in whole or not list(module.children())
    ]
    even = -(-_bytes(model) // len(free_bytes)) + max(sizes)
    most = {number: int(SHARE * free) for number, free in free_bytes.items()}
    for room in ({number: min(free, even) for number, free in most.items()}, most):
        found = dict(infer_auto_device_map(model, max_memory=dict(room), no_split_module_classes=whole))
        if set(found.values()) <= set(free_bytes):
            return found
    told = ", ".join(f"{free / 1e9:,.1f}" for free in free_bytes.values())
    raise ResourceError(
        f"judge.gpus_per_worker: {len(free_bytes)}; {type(model).__name__} has {_bytes(model) / 1e9:,.1f} GB of weights, and "
        f"the GPUs have {told} GB free, of which {SHARE:.0%} are for weights. Nothing was scored. Raise gpus_per_worker."
    )


def _bytes(module: Any) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
