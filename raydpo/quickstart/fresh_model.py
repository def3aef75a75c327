"""A small Llama model with fresh weights, as a plain transformers folder.

What comes in: a tokenizer and a shape. What goes out: a folder with config, safetensors, tokenizer and generation
config that `AutoModelForCausalLM.from_pretrained` opens.
Decision: the weights depend on the shape and the seed alone and the caller's random state stays as it was; the price
is that they are always drawn on the CPU in float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from raydpo.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def create_model(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    intermediate_size: int,
    max_positions: int,
    seed: int,
    tie_embeddings: bool = True,
) -> int:
    """Write a model with random float32 weights to `folder` and return its number of parameters.

    Tied embeddings count once. The vocabulary is the tokenizer's; `max_positions` is in tokens.
    Raises UserError when `hidden_size` does not split into `num_heads` heads of an even size.
    """
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM  # seconds, and most commands need none
    from transformers.utils import logging

    if hidden_size % (2 * num_heads):
        raise UserError(
            f"hidden_size {hidden_size} with num_heads {num_heads} gives heads of {hidden_size / num_heads:g} numbers; "
            f"rotary positions need an even whole number. Choose a hidden_size that is a multiple of {2 * num_heads}."
        )
    control = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        intermediate_size=intermediate_size,
        max_position_embeddings=max_positions,
        tie_word_embeddings=tie_embeddings,
        **control,
    )
    logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).to(torch.float32)
    model.generation_config = GenerationConfig(do_sample=False, **control)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    found: int = model.num_parameters()
    return found
