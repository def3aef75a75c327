"""Matrices of a base in 4 bits (bitsandbytes, nf4): packing them, unpacking them, counting them.

Comes in: a model of transformers. Goes out: the same with packed linear layers, or with whole ones again. Decision: packed on
the CPU, wherever the model goes then, so that policy, reference and whoever loads the export have the same bits; and one
function in training and evaluation: a kernel of some CPUs that computes in bfloat16 in evaluation mode alone is left out.
Price: about 40 s of CPU time a billion weights, in each process that loads them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raydpo.errors import ConfigError
from raydpo.models.four_bit import FourBit
from raydpo.models.matrix_kinds import EXPERTS
from raydpo.models.weightless import NOT_MADE, without_weights


def loading(folder: Path, four_bit: FourBit) -> dict[str, Any]:
    """Arguments of from_pretrained that pack the model in `folder`. Raises ConfigError for one that cannot be packed."""
    return {"quantization_config": _config(without_weights(folder), four_bit), "device_map": {"": "cpu"}}


def check_packable(folder: Path) -> None:
    """Raise ConfigError when the model in `folder` cannot be packed, by its config alone: no weight is read or made."""
    try:
        model = without_weights(folder)
    except NOT_MADE:
        return  # it is said where the weights are loaded
    _kept(model, ())


@torch.no_grad()
def pack(model: Any, four_bit: FourBit) -> Any:
    """`model`, whose weights are in `four_bit.dtype`, as loading packs the folder that it would be saved to."""
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear
    from transformers.pytorch_utils import Conv1D

    config, whole = _config(model, four_bit), dict(model.named_modules())
    replace_with_bnb_linear(model, config.llm_int8_skip_modules, config)
    for name, module in packed_layers(model):
        before = whole[name]
        weight = before.weight.T if isinstance(before, Conv1D) else before.weight
        module.weight = type(module.weight)(weight.detach(), requires_grad=False, **vars(module.weight)).to("cpu")
        if before.bias is not None:
            module.bias = nn.Parameter(before.bias.detach(), requires_grad=False)
    model.config.quantization_config, model.is_loaded_in_4bit = config, True
    return as_one_function(model)


@torch.no_grad()
def unpack(model: Any) -> Any:
    """`model` as it was read, packed, with whole matrices in place of packed ones: the same function."""
    from transformers.pytorch_utils import Conv1D

    for name, module in list(packed_layers(model)):
        weight, is_turned = as_saved(module, matrix_of(module.weight)), module.source_cls is Conv1D
        with torch.device("meta"):
            size = module.in_features, module.out_features
            fresh: Any = Conv1D(*reversed(size)) if is_turned else nn.Linear(*size, bias=module.bias is not None)
        fresh.weight = nn.Parameter(weight)
        if module.bias is not None:
            fresh.bias = nn.Parameter(module.bias.detach())
        model.set_submodule(name, fresh)
    model.hf_quantizer.remove_quantization_config(model)
    model.is_loaded_in_4bit = False
    return model.requires_grad_(True)


def as_one_function(model: Any) -> Any:
    """`model`, whose packed layers compute in evaluation mode what they compute in training mode."""
    for _, module in packed_layers(model):
        module.support_avx512bf16_for_cpu = False
    return model


def packed_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """(name, layer) of each layer whose matrix is packed."""
    for name, module in model.named_modules():
        if is_packed(getattr(module, "weight", None)) and hasattr(module, "quant_state"):
            yield name, module


def is_packed(weight: Any) -> bool:
    """Whether `weight` is a packed matrix."""
    return hasattr(weight, "quant_state")


def matrix_of(weight: Tensor) -> Tensor:
    """A packed matrix as a whole one, [outputs, inputs] in the dtype that was packed; any other weight as it is."""
    if not is_packed(weight):
        return weight
    from bitsandbytes.functional import dequantize_4bit

    found: Tensor = dequantize_4bit(weight.data, weight.quant_state)  # type: ignore[attr-defined]
    return found


def as_saved(layer: Any, matrix: Tensor) -> Tensor:
    """A matrix [outputs, inputs] of a packed layer as the layer that was packed has it (GPT-2: [inputs, outputs])."""
    from transformers.pytorch_utils import Conv1D

    return matrix.T.contiguous() if getattr(layer, "source_cls", None) is Conv1D else matrix


def num_weights(weight: Tensor) -> int:
    """Weights in a tensor; a byte of a packed one holds two."""
    return math.prod(weight.quant_state.shape) if is_packed(weight) else weight.numel()  # type: ignore[attr-defined]


def packed_said(model: Any) -> str:
    """A sentence on what is packed."""
    count = sum(num_weights(module.weight) for _, module in packed_layers(model))
    every = sum(map(num_weights, model.parameters()))
    return f"{count:,} of {every:,} weights are packed in 4 bits (nf4), for policy and reference alike"


def described_packing(model: Any) -> FourBit | None:
    """How `model` is packed, with every module that is not; None where it is not."""
    config = getattr(model.config, "quantization_config", None)
    if config is None:
        return None
    return FourBit(str(config.bnb_4bit_compute_dtype).removeprefix("torch."), tuple(config.llm_int8_skip_modules))


def _config(model: Any, four_bit: FourBit) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(**FourBit(four_bit.dtype, _kept(model, four_bit.kept)).arguments())


def _kept(model: Any, ends: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the modules that stay whole: what transformers leaves out, and those in or below what `ends` name."""
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import get_keys_to_not_convert

    family = type(model).__name__
    if any(parameter.ndim == 3 and EXPERTS in name for name, parameter in model.named_parameters()):
        raise ConfigError(
            f"train.lora.quantize_base: the experts of {family} stand in one tensor, which bitsandbytes does not pack: nearly "
            "all of the model would have stayed as it is. Nothing was started. Leave quantize_base out."
        )
    linear = {name for name, module in model.named_modules() if type(module) in (nn.Linear, Conv1D)}
    kept = set(get_keys_to_not_convert(model))
    kept |= {name for name in linear if any(part.endswith(end) for part in _places(name) for end in ends)}
    if not linear - kept:
        raise ConfigError(
            f"train.lora.quantize_base: {family} has no linear layer that could be packed in 4 bits. Nothing was started. "
            "Leave quantize_base out."
        )
    return tuple(sorted(kept))


def _places(name: str) -> Iterator[str]:
    """A name and those of the modules that it is in."""
    while name:
        yield name
        name = name.rpartition(".")[0]
