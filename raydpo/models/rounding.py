"""What rounding does to a model's log-probs, measured: the same forward with every result moved in its last place.

Comes in: a model. Goes out: a context in which its forwards compute as another machine might. Decision: two scorings that
differ in kernels, batches or sharding are apart by what rounding becomes on its way through this very model, so that is
measured, not assumed for a dtype (D. S. Parker, Monte Carlo Arithmetic, 1997). What a module gives is multiplied by
1 + eps r, r even in [-1, 1): with Llamas of 4 and 12 layers log-probs then moved by 1.0 (float32) to 2.5 (bfloat16) times
their distance from float64's. Price: one more forward of a few rows at a fresh start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def rounded_otherwise(model: nn.Module, seed: int = 0) -> Iterator[None]:
    """Move what each module of `model` gives by up to a unit in its last place, the same way for the same seed.

    Compiled layers run as they were written meanwhile.
    """
    draws: dict[torch.device, torch.Generator] = {}

    def moved(values: Any) -> Any:
        if isinstance(values, tuple):
            return (moved(values[0]), *values[1:]) if values else values
        if not isinstance(values, Tensor) or not values.is_floating_point():
            return values
        if values.device not in draws:
            draws[values.device] = torch.Generator(values.device).manual_seed(seed)
        wide = values.double() if values.dtype == torch.float32 else values.float()
        shift = torch.rand(values.shape, generator=draws[values.device], device=values.device, dtype=wide.dtype) * 2 - 1
        return (wide * (1 + torch.finfo(values.dtype).eps * shift)).to(values.dtype)

    with ExitStack() as undo:
        for module in model.modules():
            if module is not model:
                undo.enter_context(_uncompiled(module))
                undo.callback(module.register_forward_hook(lambda _module, _inputs, given: moved(given)).remove)
        yield


@contextmanager
def _uncompiled(module: nn.Module) -> Iterator[None]:
    compiled, module._compiled_call_impl = module._compiled_call_impl, None
    try:
        yield
    finally:
        module._compiled_call_impl = compiled
