"""LoRA by PEFT: put an adapter on a model, and say what it adapts.

Decision: the adapter starts as the identity (B = 0, no PiSSA or similar), so that a fresh policy equals its reference
and the probe at the start can prove it. A matrix that two modules share (a tied head) is neither adapted nor copied: the
adapter would change one of them, and its merge both. Everything means every linear layer and the matrices of experts, but
not the head, routers and towers of images and sound; in a model with experts PEFT takes names such as gate_proj for those of
experts, so that other layers are named there by their parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from raydpo.errors import ConfigError
from raydpo.models.matrix_kinds import EXPERTS, OTHER_SENSES, ROUTER, kind_of_matrix
from raydpo.models.merging import is_copied, plain_name, tied_modules
from raydpo.models.weightless import NOT_MADE, without_weights

EVERYTHING = "all-linear"
_ATTENTION = ("attn", "attention")


def add_lora(
    model: Any,
    *,
    rank: int,
    alpha: float,
    target_modules: str | tuple[str, ...],
    seed: int,
    rslora: bool = False,
    dora: bool = False,
    init: str = "default",
    experts: bool = True,
    modules_to_save: tuple[str, ...] = (),
) -> Any:
    """Wrap `model` in a PeftModel with one trainable adapter in the dtype of the model; weights depend on `seed` only.

    experts: with all-linear, the matrices of experts too. Raises ConfigError when the names fit no module, or one whose
    matrix is another module's too.
    """
    from peft import LoraConfig, get_peft_model

    targets, parameters = _targets(model, target_modules, experts)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=targets,
        target_parameters=parameters or None,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        init_lora_weights=True if init == "default" else init,
        use_rslora=rslora,
        use_dora=dora,
        modules_to_save=list(modules_to_save) or None,
    )
    try:
        adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as error:
        hint = "Set train.lora.experts: false or dora: false. " if dora and parameters else ""
        raise ConfigError(
            f"train.lora.target_modules: {target_modules!r} fits no module of {type(model).__name__}, or not as asked "
            f"({error}). Nothing was trained. {hint}Give names of its linear modules, or all-linear."
        ) from error
    if getattr(model, "is_loaded_in_4bit", False):  # PEFT takes the dtype of the matrix below, and bytes have none
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.to(model.dtype)
    _check_copies(adapted, modules_to_save)
    _check_ties(adapted, target_modules)
    return adapted


def check_lora(folder: Path, **settings: Any) -> None:
    """Raise the ConfigError of `add_lora` for the model in `folder`, by its config alone: no weight is read or made."""
    try:
        model = without_weights(folder)
        with torch.random.fork_rng(), torch.device("meta"):
            add_lora(model, seed=0, **settings)
    except NOT_MADE:
        return  # a model that cannot be made without weights: `add_lora` looks again where it is loaded


def _targets(model: Any, target_modules: str | tuple[str, ...], experts: bool) -> tuple[str | list[str], list[str]]:
    """(modules, parameters) that PEFT is given."""
    if target_modules != EVERYTHING:
        return (target_modules if isinstance(target_modules, str) else list(target_modules)), []
    stacked = [name for name, parameter in model.named_parameters() if parameter.ndim == 3 and EXPERTS in name]
    linear = list(_linear(model))
    left_out = {name for name in linear if kind_of_matrix(name) in (ROUTER, OTHER_SENSES)}
    if not stacked and not left_out:
        return EVERYTHING, []
    kept = [name for name in linear if name not in left_out]
    named = [name for name in kept if not stacked or any(part in name for part in _ATTENTION)]
    return named, [*(f"{name}.weight" for name in kept if name not in named), *(stacked if experts else [])]


def _linear(model: Any) -> Iterator[str]:
    """Names of all linear layers but the head."""
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head:
            yield name


def _check_copies(adapted: Any, modules_to_save: tuple[str, ...]) -> None:
    found = {plain_name(name).rpartition(".")[2] for name, module in adapted.named_modules() if is_copied(module)}
    if missing := [name for name in modules_to_save if name.rpartition(".")[2] not in found]:
        raise ConfigError(
            f"train.lora.modules_to_save: {', '.join(missing)} fits no module of {type(adapted.get_base_model()).__name__}. "
            "Nothing was trained. Give the names that its modules have, such as embed_tokens, lm_head or norm."
        )


def _check_ties(adapted: Any, target_modules: str | tuple[str, ...]) -> None:
    ties = list(tied_modules(adapted))
    if not ties:
        return
    key, given = "target_modules", repr(target_modules)
    if any(is_copied(module) for _, module, _ in ties):
        key, given = "modules_to_save", ", ".join(name for name, _, _ in ties)
    names = "; ".join(f"{name} is one matrix with {', '.join(others)}" for name, _, others in ties)
    raise ConfigError(
        f"train.lora.{key}: {given} adapts a tied module of {type(adapted.get_base_model()).__name__}: {names} "
        "(tie_word_embeddings of its config). The adapter would have trained one of them, and merging it changes both: "
        "model_merged/ and what generators get would have been another model than the one that was trained. Nothing was "
        "trained. Leave it out (all-linear leaves the head alone), or start from a copy of the model with "
        "tie_word_embeddings: false and a head of its own."
    )
