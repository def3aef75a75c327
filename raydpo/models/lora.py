"""LoRA by PEFT: put an adapter on a model, save it, merge it.

Decision: the adapter starts as the identity (B = 0, no PiSSA or similar), so that a fresh policy equals its reference
and the probe at the start can prove it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from raydpo.errors import ConfigError


def add_lora(model: Any, *, rank: int, alpha: float, target_modules: str | tuple[str, ...], seed: int) -> Any:
    """Wrap `model` in a PeftModel with one trainable adapter in the dtype of the model; weights depend on `seed` only."""
    from peft import LoraConfig, get_peft_model

    targets = target_modules if isinstance(target_modules, str) else list(target_modules)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=targets,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        init_lora_weights=True,
    )
    try:
        return get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as error:
        raise ConfigError(
            f"train.lora.target_modules: {target_modules!r} fits no module of {type(model).__name__} ({error}). Nothing was "
            "trained. Give names of its linear modules, or all-linear."
        ) from error


def merge_lora(base: Path, adapter: Path, out: Path, dtype: str) -> None:
    """Write base + adapter to `out` as a plain transformers folder."""
    from peft import PeftModel

    from raydpo.models.pretrained import load_model, load_tokenizer

    merged = PeftModel.from_pretrained(load_model(base, dtype, "auto"), str(adapter)).merge_and_unload()
    merged.save_pretrained(out, safe_serialization=True)
    load_tokenizer(base).save_pretrained(out)
