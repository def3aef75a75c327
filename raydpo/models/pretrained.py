"""A transformers folder -> a causal language model that is ready to score or to train.

Goes out: the module in the asked dtype, every dropout at 0, cache off. Remote code is never run.
Decision: an *adapter* folder is merged into its base on loading, so that a trained adapter can be evaluated like any
model. It cannot be trained from or be a reference: "the adapter off" would then be the base, not the SFT model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raydpo.errors import ConfigError
from raydpo.models.lora import merge_adapter
from raydpo.models.resolve import adapter_base

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_model(folder: Path, dtype: str, attention: str) -> Any:
    """Load the causal LM in `folder` on the CPU, in evaluation mode.

    dtype: "float32" or "bfloat16"; attention: a transformers attention name, or "auto": sdpa, or eager where there is none,
    until `choose_layout`.
    Raises ConfigError when the folder holds no whole causal language model in safetensors: transformers would draw what is
    missing at random and only log it.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # the driver shows progress; a bar a process would tear it apart
    is_adapter = (folder / "adapter_config.json").is_file()
    base = adapter_base(folder).folder if is_adapter else folder

    def read(implementation: str) -> Any:
        model, found = AutoModelForCausalLM.from_pretrained(
            str(base),
            dtype=DTYPES[dtype],
            attn_implementation=implementation,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        if missing := sorted(found["missing_keys"]):
            raise ValueError(f"the files lack {', '.join(missing[:3])}{', ...' * (len(missing) > 3)}")
        return model

    try:
        model = read(attention) if attention != "auto" else _first_that_works(read, "sdpa", "eager")
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(
            f"{base} could not be loaded as a causal language model: {error}. Allowed: a transformers folder or hub id with "
            "*.safetensors whose architecture transformers knows without remote code."
        ) from error
    if is_adapter:
        model = merge_adapter(model, folder)
    return switch_dropout_off(model).eval()


def _first_that_works(read: Callable[[str], Any], first: str, second: str) -> Any:
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
    """The fast tokenizer of a model folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
