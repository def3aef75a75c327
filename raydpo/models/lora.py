"""LoRA by PEFT: put an adapter on a model, save it, merge it.

Decision: the adapter starts as the identity (B = 0, no PiSSA or similar), so that a fresh policy equals its reference
and the probe at the start can prove it. A matrix that two modules share (a tied head) is not adapted: the adapter would
change one of them, and its merge both. An adapter of others that does so is merged into a copy, which is what it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from raydpo.errors import ConfigError
from raydpo.models.merging import tied_modules


def add_lora(model: Any, *, rank: int, alpha: float, target_modules: str | tuple[str, ...], seed: int) -> Any:
    """Wrap `model` in a PeftModel with one trainable adapter in the dtype of the model; weights depend on `seed` only.

    Raises ConfigError when the names fit no module, or one whose matrix is another module's too.
    """
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
        adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as error:
        raise ConfigError(
            f"train.lora.target_modules: {target_modules!r} fits no module of {type(model).__name__} ({error}). Nothing was "
            "trained. Give names of its linear modules, or all-linear."
        ) from error
    if tied := list(tied_modules(adapted)):
        names = "; ".join(f"{name} is one matrix with {', '.join(others)}" for name, _, others in tied)
        raise ConfigError(
            f"train.lora.target_modules: {target_modules!r} adapts a tied module of {type(model).__name__}: {names} "
            "(tie_word_embeddings of its config). The adapter would have trained one of them, and merging it changes both: "
            "model_merged/ and what generators get would have been another model than the one that was trained. Nothing was "
            "trained. Leave it out (all-linear leaves the head alone), or start from a copy of the model with "
            "tie_word_embeddings: false and a head of its own."
        )
    return adapted


def check_lora(folder: Path, *, rank: int, alpha: float, target_modules: str | tuple[str, ...]) -> None:
    """Raise the ConfigError of `add_lora` for the model in `folder`, by its config alone: no weight is read or made."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng(), torch.device("meta"):
        try:
            config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
            add_lora(model, rank=rank, alpha=alpha, target_modules=target_modules, seed=0)
        except (OSError, LookupError, ImportError, RuntimeError, TypeError, ValueError, AttributeError, AssertionError):
            return  # a model that cannot be made without weights: `add_lora` looks again where it is loaded
