"""Logits of a half-precision head in float32: the products are summed in float32 and never rounded to 16 bits.

Comes in: hidden states [N, H] and the head's weights [V, H] in bfloat16 or float16. Goes out: float32 logits [N, V].
Decision: a bfloat16 logit between 16 and 32 lies on a grid of 0.125, which is 0.04 nats of noise a token in what this
program promises to be exact; so the head is a function of its own. On CUDA the matrix product writes its float32 sums
(`out_dtype`), on a CPU rows of the head are widened a block at a time. Price: float32 logits where 16 bits were kept, and on
a CPU a copy of a block. The head stays a module that is called: ZeRO 3 gathers its weights, and LoRA wraps it, at the call.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from raydpo.models.attention import HALF

BLOCK_BYTES = 64 * 2**20
"""Of widened rows of the head that exist at one time on a CPU."""


def widen(head: Any) -> None:
    """Have the linear layer of a head give float32 logits where its weights have 16 bits, adapters on it included.

    What is no plain linear layer, and other dtypes, stay as they are. To do it again changes nothing.
    """
    for name, module in head.named_modules():
        if type(module) is nn.Linear and "lora_" not in name:
            module.forward = MethodType(_forward, module)  # type: ignore[method-assign]


def _forward(layer: nn.Linear, hidden: Tensor) -> Tensor:
    """`nn.Linear.forward`, but for the dtype of what comes out of 16 bits."""
    weight = layer.weight
    if hidden.dtype not in HALF or weight.dtype != hidden.dtype:
        return nn.functional.linear(hidden, weight, layer.bias)
    flat: Tensor = _WideProduct.apply(hidden.reshape(-1, hidden.shape[-1]), weight)  # type: ignore[no-untyped-call]
    logits = flat.view(*hidden.shape[:-1], flat.shape[-1])
    return logits if layer.bias is None else logits + layer.bias.float()


class _WideProduct(torch.autograd.Function):
    """hidden [N, H] times weight [V, H] transposed, both in 16 bits: [N, V] float32."""

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, weight_VH: Tensor) -> Tensor:
        ctx.save_for_backward(hidden_NH, weight_VH)
        if hidden_NH.is_cuda:
            return torch.mm(hidden_NH, weight_VH.t(), out_dtype=torch.float32)
        wide_NH = hidden_NH.float()
        logits_NV = wide_NH.new_empty(len(hidden_NH), len(weight_VH))
        for rows in _blocks(weight_VH):
            torch.mm(wide_NH, weight_VH[rows].float().t(), out=logits_NV[:, rows])
        return logits_NV

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (grad_NV,) = grads
        hidden_NH, weight_VH = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad
        if hidden_NH.is_cuda:  # as the layer itself does it: 16 bits in, sums in float32, 16 bits out
            half_NV = grad_NV.to(weight_VH.dtype)
            return (half_NV @ weight_VH if wants_hidden else None), (half_NV.t() @ hidden_NH if wants_weight else None)
        to_hidden = torch.zeros_like(hidden_NH, dtype=torch.float32) if wants_hidden else None
        to_weight = torch.empty_like(weight_VH) if wants_weight else None
        wide_NH = hidden_NH.float()
        for rows in _blocks(weight_VH):
            if to_hidden is not None:
                to_hidden.addmm_(grad_NV[:, rows], weight_VH[rows].float())
            if to_weight is not None:
                to_weight[rows] = (grad_NV[:, rows].t() @ wide_NH).to(weight_VH.dtype)
        return (None if to_hidden is None else to_hidden.to(hidden_NH.dtype)), to_weight


def _blocks(weight_VH: Tensor) -> list[slice]:
    """Rows of the head, at most `BLOCK_BYTES` of them in float32 at a time."""
    size = max(1, BLOCK_BYTES // (4 * weight_VH.shape[1]))
    return [slice(start, start + size) for start in range(0, len(weight_VH), size)]
