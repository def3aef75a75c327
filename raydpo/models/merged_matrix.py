"""One matrix under an adapter that trains: the tensors that make it, and the matrix that merging would give.

Comes in: a layer of PEFT (LoRA, rsLoRA, DoRA, of matrices, embeddings and experts in one tensor). Goes out: tensors.
Decision: computed in float32 whatever the adapter is in, and rounded once, as the merge of a folder is: what generators get
is what is published, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from raydpo.models.merging import plain_name
from raydpo.models.packed import as_saved, matrix_of, packed_layers
from raydpo.models.tensor_bytes import dtype_name
from raydpo.schema.shared_weights import AdaptedMatrix


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
    return as_saved(
        module.get_base_layer(), merged(base, factors(module, adapter), described("", module, adapter, base))
    )


def described(name: str, module: Any, adapter: str, base: Tensor) -> AdaptedMatrix:
    """What `merged` must know of the matrix `base`, which is not packed, beside its factors."""
    return AdaptedMatrix(
        name,
        dtype_name(base.dtype),
        float(module.scaling[adapter]),
        bool(module.fan_in_fan_out or adapter in module.lora_embedding_A),
        getattr(module, "num_experts", 1),
        getattr(module.get_base_layer(), "is_transposed", False),
    )


def merged(base: Tensor, factors: Sequence[Tensor], how: AdaptedMatrix) -> Tensor:
    """`base` with the product of `factors` in it, in the dtype of `base`. No module is needed."""
    down, up, *magnitudes = (factor.float() for factor in factors)
    delta = how.scaling * _product(down, up, how)
    found = base.float() + (delta.T if how.is_turned else delta)
    if magnitudes:  # of each output, whose direction is a row, or a column where the matrix is turned
        along = 0 if how.is_turned else 1
        found = found * (magnitudes[0] / torch.linalg.norm(found, dim=along)).unsqueeze(along)
    return found.to(base.dtype)


def _product(down: Tensor, up: Tensor, how: AdaptedMatrix) -> Tensor:
    if how.num_experts == 1:
        return up @ down
    down_ERI = down.reshape(how.num_experts, -1, down.shape[-1])
    up_ORE = up.reshape(up.shape[0], -1, how.num_experts)
    out_EOI = torch.einsum("o r e, e r i -> e o i", up_ORE, down_ERI)
    # Some models keep the matrices of experts as [in, out], and say so.
    return out_EOI.transpose(1, 2) if how.is_transposed else out_EOI
