"""LoRA by PEFT: put an adapter on a model, save it, merge it.

Decision: the adapter starts as the identity (B = 0, no PiSSA or similar), so that a fresh policy equals its reference
and the probe at the start can prove it. A matrix that two modules share (a tied head) is not adapted: the adapter would
change one of them, and its merge both. An adapter of others that does so is merged into a copy, which is what it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from raydpo.errors import ConfigError
from raydpo.models.carried_files import carry_config, carry_files


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
    if tied := list(_adapted_ties(adapted)):
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


def _adapted_ties(adapted: Any) -> Iterator[tuple[str, Any, list[str]]]:
    """(name, adapted module, names of others with the same matrix) of each adapted module that does not own it alone."""
    owners: dict[int, list[str]] = {}
    for name, module in adapted.named_modules(remove_duplicate=False):
        for _, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(_plain(name))
    for name, module in adapted.named_modules():
        if hasattr(module, "get_base_layer"):
            own = module.get_base_layer().named_parameters(recurse=False)
            others = {owner for _, parameter in own for owner in owners[id(parameter)]}
            if rest := sorted(others - {_plain(name)}):
                yield _plain(name), module, rest


def _plain(name: str) -> str:
    """Name of a module without what PEFT puts around it."""
    return name.removeprefix("base_model.model.").replace(".base_layer", "")


def merge_adapter(model: Any, adapter: Path) -> Any:
    """`model` with the adapter in its weights; a tied matrix that the adapter changes in one place is untied."""
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(model, str(adapter))
    ties = list(_adapted_ties(adapted))
    for _, module, _ in ties:
        base = module.get_base_layer()
        base.weight = torch.nn.Parameter(base.weight.detach().clone(), requires_grad=False)
    merged = adapted.merge_and_unload()
    if ties:
        merged.config.get_text_config().tie_word_embeddings = False
        merged.config.tie_word_embeddings = False
    return merged


def merge_lora(base: Path, adapter: Path, out: Path, dtype: str) -> None:
    """Write base + adapter to `out` as a plain transformers folder, with the adapter's tokenizer where it has one."""
    from raydpo.models.pretrained import load_model

    merged = merge_adapter(load_model(base, dtype, "auto"), adapter)
    merged.save_pretrained(out, safe_serialization=True)
    carry_config(base, out)
    carry_files(base, out)
    carry_files(adapter, out)
