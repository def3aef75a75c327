"""One matrix under an adapter that trains: the tensors that make it, and the matrix that merging would give.

Comes in: a layer of PEFT (LoRA, rsLoRA, DoRA, of matrices, embeddings and experts in one tensor). Goes out: tensors.
Decision: computed in float32 whatever the adapter is in, and rounded once, as the merge of a folder is: what generators get
is what is published, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from raydpo.models.merging import plain_name
from raydpo.models.packed import as_saved, matrix_of, packed_layers


def adapted_matrices(model: Any) -> Iterator[tuple[str, Any, str, Tensor]]:
    """(plain name, layer of PEFT, its adapter, the matrix below it) of each matrix that an adapter changes."""
    for name, module in model.named_modules():
        if not hasattr(module, "get_delta_weight"):
            continue
        for adapter in module.active_adapters:
            kind = getattr(module, "parameter_name", "weight")
            yield f"{plain_name(name)}.{kind}", module, adapter, getattr(module.get_base_layer(), kind)


def unadapted_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """(plain name of its matrix, layer) of each packed layer that no adapter changes."""
    adapted = {name for name, *_ in adapted_matrices(model)}
    for place, layer in packed_layers(model):
        if (name := f"{plain_name(place)}.weight") not in adapted:
            yield name, layer


def copied_tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """(plain name, parameter) of modules that are trained whole beside the adapter (modules_to_save)."""
    for name, parameter in model.named_parameters():
        if ".modules_to_save." in name:
            yield plain_name(name), parameter


def factors(module: Any, adapter: str) -> list[Tensor]:
    """A [rank, in] and B [out, rank] of a matrix, and DoRA's magnitudes where it has them; of an embedding its ids are in."""
    magnitudes = getattr(module, "lora_magnitude_vector", {})
    more = [magnitudes[adapter].weight] if adapter in magnitudes else []
    if adapter in module.lora_embedding_A:
        return [module.lora_embedding_A[adapter], module.lora_embedding_B[adapter], *more]
    return [module.lora_A[adapter].weight, module.lora_B[adapter].weight, *more]


def merged_matrix(module: Any, adapter: str, base: Tensor) -> Tensor:
    """`base` with the adapter in it, in the dtype of `base`; of a packed one as it was before it was packed."""
    base = matrix_of(base)
    down, up, *magnitudes = (factor.float() for factor in factors(module, adapter))
    is_embedding = adapter in module.lora_embedding_A
    is_turned = module.fan_in_fan_out or is_embedding
    delta = module.scaling[adapter] * _product(module, down, up)
    merged = base.float() + (delta.T if is_turned else delta)
    if magnitudes:  # of each output, whose direction is a row, or a column where the matrix is turned
        along = 0 if is_turned else 1
        merged = merged * (magnitudes[0] / torch.linalg.norm(merged, dim=along)).unsqueeze(along)
    return as_saved(module.get_base_layer(), merged.to(base.dtype))


def _product(module: Any, down: Tensor, up: Tensor) -> Tensor:
    num_experts = getattr(module, "num_experts", 1)
    if num_experts == 1:
        return up @ down
    down_ERI = down.reshape(num_experts, -1, down.shape[-1])
    up_ORE = up.reshape(up.shape[0], -1, num_experts)
    out_EOI = torch.einsum("o r e, e r i -> e o i", up_ORE, down_ERI)
    # Some models keep the matrices of experts as [in, out], and say so.
    return out_EOI.transpose(1, 2) if getattr(module.get_base_layer(), "is_transposed", False) else out_EOI
