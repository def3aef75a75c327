"""Adapters of others on tiny models: nine kinds, made with PEFT alone, each far enough from its base to be told from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from raydpo.models.four_bit import FourBit
from raydpo.models.packed import as_one_function

LLAMA = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {**LLAMA, "num_key_value_heads": 2, "tie_word_embeddings": False},
    "qwen2": {**LLAMA, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "mixtral": {**LLAMA, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
}
NEW_TOKENS = ("<think>", "</think>", "<tool>")


@dataclass(frozen=True)
class Kind:
    """family: of the base. peft: what PEFT is given. new_tokens: added to the vocabulary before training. four_bit: how its
    base is packed."""

    family: str
    peft: Mapping[str, Any]
    new_tokens: tuple[str, ...] = ()
    on_hub: bool = False
    four_bit: FourBit | None = None


LINEAR = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
KINDS = {
    "lora": Kind("llama", LINEAR),
    "rslora": Kind("llama", {**LINEAR, "use_rslora": True}),
    "dora": Kind("llama", {**LINEAR, "use_dora": True}),
    "modules_to_save": Kind(
        "qwen2",
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "input_layernorm"]},
    ),
    "resized": Kind("llama", {"r": 4, "lora_alpha": 8, "target_modules": ["v_proj"]}, NEW_TOKENS),
    "resized copies": Kind(
        "qwen2", {"r": 4, "target_modules": ["v_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}, NEW_TOKENS
    ),
    "tied head": Kind("qwen2", {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "lm_head"]}),
    "experts": Kind("mixtral", LINEAR),
    "revision": Kind("llama", LINEAR, on_hub=True),
    "packed base": Kind("llama", LINEAR, four_bit=FourBit("float32", ("lm_head",))),
}


@dataclass(frozen=True)
class Made:
    """folder: of the adapter. beside: the adapter beside its base, as it was trained, in evaluation mode."""

    folder: Path
    base: Path
    beside: Any

    @torch.no_grad()
    def nats(self, ids: torch.Tensor) -> torch.Tensor:
        """Log-probs over the vocabulary."""
        return self.beside(input_ids=ids).logits.double().log_softmax(-1)


def make_base(folder: Path, family: str, tokenizer_of: Path, seed: int = 0) -> Path:
    """A model of random weights that are large enough to have opinions, with the tokenizer of `tokenizer_of`."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    special = {"bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(
        family, **SHAPES[family], vocab_size=len(tokenizer), max_position_embeddings=64, **special
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(4.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_adapter(folder: Path, kind: Kind, base: Path, named: str, revision: str | None = None) -> Made:
    """An adapter with weights of its own in `folder/adapter`. named: what it says of its base."""
    model = (
        packed(base, kind.four_bit)
        if kind.four_bit
        else AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    )
    out = folder / "adapter"
    if kind.new_tokens:
        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer.add_tokens(list(kind.new_tokens))
        model.resize_token_embeddings(len(tokenizer))
        tokenizer.save_pretrained(out)
    torch.manual_seed(7)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **kind.peft))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                parameter.normal_(std=0.15)
            elif parameter.requires_grad:
                parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
    adapted.save_pretrained(out, save_embedding_layers=True if kind.new_tokens else "auto")
    if kind.four_bit:
        kind.four_bit.write(out)
    path = out / "adapter_config.json"
    described = {**json.loads(path.read_text()), "base_model_name_or_path": named, "revision": revision}
    path.write_text(json.dumps(described))
    return Made(out, base, adapted.eval())


def packed(base: Path, four_bit: FourBit) -> Any:
    """The base in 4 bits, by transformers."""
    settings, dtype = BitsAndBytesConfig(**four_bit.arguments()), getattr(torch, four_bit.dtype)
    found = AutoModelForCausalLM.from_pretrained(
        base, dtype=dtype, quantization_config=settings, device_map={"": "cpu"}
    )
    return as_one_function(found)


def as_peft_loads_it(made: Made) -> Any:
    """The adapter's folder beside its base, by PEFT alone (not of a resized vocabulary)."""
    model = AutoModelForCausalLM.from_pretrained(made.base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, made.folder).eval()
