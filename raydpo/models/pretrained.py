"""A transformers folder -> a causal language model that is ready to score or to train.

Goes out: the module in the asked dtype, every dropout at 0, cache off. Remote code is never run.
Decision: an adapter is merged into its base on loading, in float32 whatever the dtype, which is cast to once at the end: so
the reference, the policy and whoever else loads it have the same bytes. Price: the model stands in main memory in float32
for a moment. An adapter that was trained on a base in 4 bits is merged into what that base unpacks to.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raydpo.errors import ConfigError
from raydpo.models.auto_class import auto_class
from raydpo.models.config_file import config_of
from raydpo.models.four_bit import FourBit
from raydpo.models.merging import merge_adapter
from raydpo.models.packed import as_one_function, loading, pack, unpack
from raydpo.models.resolve import ResolvedModel, with_base

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_model(found: ResolvedModel | Path, dtype: str, attention: str) -> Any:
    """Load the causal LM `found`, a model or an adapter, on the CPU, in evaluation mode.

    dtype: "float32" or "bfloat16"; attention: a transformers attention name, or "auto": sdpa, or eager where there is none,
    until `choose_layout`.
    Raises ConfigError when the folder holds no whole causal language model in safetensors: transformers would draw what is
    missing at random and only log it.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # the driver shows progress; a bar a process would tear it apart
    model = with_base(ResolvedModel(str(found), None, found) if isinstance(found, Path) else found)
    if model.base is None:
        return switch_dropout_off(_read(model.here(), dtype, attention, model.four_bit)).eval()
    merged = cast(merge_adapter(_whole(model.base), model.here()), DTYPES[dtype])
    if model.four_bit is not None:
        merged = pack(merged, model.four_bit)
    if attention != "auto":
        merged.set_attn_implementation(attention)
    return switch_dropout_off(merged).eval()


def _whole(base: ResolvedModel) -> Any:
    """The base of an adapter in float32; what it unpacks to where the adapter was trained on a packed one."""
    if base.four_bit is None:
        return load_model(base, "float32", "auto")
    return cast(unpack(load_model(base, base.four_bit.dtype, "auto")), torch.float32)


def _read(folder: Path, dtype: str, attention: str, four_bit: FourBit | None) -> Any:
    packed = {} if four_bit is None else loading(folder, four_bit)

    def read(implementation: str) -> Any:
        model, found = auto_class(config_of("the model", folder)).from_pretrained(
            str(folder),
            dtype=DTYPES[dtype],
            attn_implementation=implementation,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **packed,
        )
        if missing := sorted(found["missing_keys"]):
            raise ValueError(f"the files lack {', '.join(missing[:3])}{', ...' * (len(missing) > 3)}")
        return as_one_function(model)

    try:
        return read(attention) if attention != "auto" else first_that_works(read, "sdpa", "eager")
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise not_loadable(folder, error) from error


def not_loadable(folder: Path, why: object) -> ConfigError:
    """The error of a folder that is no whole causal language model."""
    return ConfigError(
        f"{folder} could not be loaded as a causal language model: {why}. Allowed: a transformers folder or hub id with "
        "*.safetensors whose architecture transformers knows without remote code."
    )


@torch.no_grad()
def cast(model: Any, dtype: torch.dtype, only: Set[nn.Module] | None = None) -> Any:
    """What loading a folder in `dtype` gives: weights in `dtype`, tables that are computed at the start as they are.

    only: modules whose own weights are cast, where they are there; None: all.
    """
    kept = model.state_dict().keys()
    exempt = tuple(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if only is not None and (tensor.is_meta or model.get_submodule(name.rpartition(".")[0]) not in only):
            continue
        if tensor.is_floating_point() and name in kept and not set(exempt) & set(name.split(".")):
            tensor.data = tensor.data.to(dtype)
    model.config.dtype = dtype
    return model


def first_that_works(read: Callable[[str], Any], first: str, second: str) -> Any:
    """`read(first)`, or where an architecture does not have that attention `read(second)`."""
    try:
        return read(first)
    except ValueError as error:  # what transformers raises for an attention that an architecture does not have
        if "attention" not in str(error):
            raise
        return read(second)


def switch_dropout_off(model: nn.Module) -> nn.Module:
    """Set every dropout probability to 0, on modules and on the attributes that attention classes read."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    return model


def load_tokenizer(folder: Path) -> Any:
    """The fast tokenizer of a model folder; of an adapter without one, its base's."""
    from transformers import AutoTokenizer

    found = with_base(ResolvedModel(str(folder), None, folder))
    return AutoTokenizer.from_pretrained(str(found.tokenizer), trust_remote_code=False)
