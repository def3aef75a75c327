"""Small random models whose files differ from what they are in memory: in names, in shapes, or in what they hold.

`qwen3_moe`, `mixtral`: the experts of a layer are one tensor in memory and many in a file. `gpt2`: its head is tied; its
file has the names of the base model, as on the hub. `llama`: its file holds rotary frequencies, which nothing reads.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MixtralConfig, Qwen3MoeConfig

from raydpo.quickstart.bpe import train_bpe
from raydpo.train.push import parts
from tests.generate.conftest import POSITIONS, VOCABULARY

KINDS = ("qwen3_moe", "mixtral", "gpt2", "llama")


def _config(kind: str) -> Any:
    tokens = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    size = {"hidden_size": 64, "intermediate_size": 64, "max_position_embeddings": POSITIONS, **tokens}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    experts = {"num_experts_per_tok": 2, **layers, **size}
    match kind:
        case "qwen3_moe":
            return Qwen3MoeConfig(moe_intermediate_size=32, num_experts=4, head_dim=32, **experts)
        case "mixtral":
            return MixtralConfig(num_local_experts=4, sliding_window=None, **experts)
        case "gpt2":
            return GPT2Config(n_embd=64, n_layer=2, n_head=2, n_positions=POSITIONS, **tokens)
    return LlamaConfig(**layers, **size)


def write(kind: str, folder: Path, seed: int) -> Path:
    """A model as transformers saves it, with logits that are spread out."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(_config(kind))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    model.save_pretrained(folder)
    train_bpe(["the cat and the hat and the bat that sat"], VOCABULARY).save_pretrained(folder)
    return folder


def write_raw(kind: str, folder: Path, seed: int) -> Path:
    """The same, as a folder of the hub may hold it."""
    path = write(kind, folder, seed) / "model.safetensors"
    weights = {name.removeprefix("transformer."): weight for name, weight in load_file(path).items()}
    if kind == "llama":
        weights |= {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(16) for layer in range(2)}
    save_file(weights, path, {"format": "pt"})
    return folder


def pushed(folder: Path) -> list[dict[str, Any]]:
    """What trainers of the model in `folder` send, in parts of 64 KiB."""
    with torch.no_grad():
        return [part.weights for part in parts(AutoModelForCausalLM.from_pretrained(folder), 0, True, 2**16)]
