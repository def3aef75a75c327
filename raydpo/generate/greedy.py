"""Greedy decoding with transformers and a KV cache.

What comes in: a model folder and prompts as token ids. What goes out: the new token ids of each prompt, in the order
given, without the end-of-sequence token and without anything behind it.
Decision: prompts of similar length share a batch and are padded on the left, where the attention mask and the
positions skip the padding; every answer is the one that the prompt gets alone, up to rounding. Sampling settings in
the model's generation config are ignored, its end-of-sequence ids are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from raydpo.errors import DataError, UserError
from raydpo.models.load import load_model


def greedy(
    model_path: Path, prompts: Sequence[Sequence[int]], max_new_tokens: int, *, batch_size: int = 64
) -> list[list[int]]:
    """Decode at most `max_new_tokens` tokens behind each prompt; float32 on the CPU.

    Raises UserError for a `max_new_tokens` or `batch_size` below 1, and DataError naming every prompt that is empty,
    holds an id outside of the vocabulary, or leaves too little room in the model's context.
    """
    if max_new_tokens < 1 or batch_size < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens} and batch_size {batch_size}; both must be at least 1.")
    if not prompts:
        return []
    model = load_model(Path(model_path), "float32", "sdpa")
    _check_prompts(prompts, max_new_tokens, model.config)
    settings = _settings(model, max_new_tokens)
    model.generation_config = settings  # generate() fills what is unset from here
    answers: list[list[int]] = [[] for _ in prompts]
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(by_length), batch_size):
        batch = by_length[start : start + batch_size]
        for index, answer in zip(batch, _decode(model, [prompts[i] for i in batch], settings), strict=True):
            answers[index] = answer
    return answers


def _settings(model: Any, max_new_tokens: int) -> GenerationConfig:
    """Plain greedy decoding that ends at the model's own end-of-sequence ids."""
    known = model.generation_config.eos_token_id
    eos = model.config.eos_token_id if known is None else known
    eos_ids = [eos] if isinstance(eos, int) else list(eos or [])
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        use_cache=True,
        max_new_tokens=max_new_tokens,
        eos_token_id=eos_ids or None,
        pad_token_id=eos_ids[0] if eos_ids else 0,  # behind an end: cut off below
    )


def _decode(model: Any, prompts: list[Sequence[int]], settings: GenerationConfig) -> list[list[int]]:
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), settings.pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    with torch.inference_mode():
        decoded = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
    ends = set(settings.eos_token_id or ())
    return [_until_end(row, ends) for row in decoded[:, width:].tolist()]


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    return next((ids[:position] for position, token in enumerate(ids) if token in ends), ids)


def _check_prompts(prompts: Sequence[Sequence[int]], max_new_tokens: int, config: Any) -> None:
    room = getattr(config, "max_position_embeddings", None)
    problems = []
    for index, prompt in enumerate(prompts):
        if not prompt:
            problems.append(f"Prompt {index} has no tokens; there is nothing to continue. Give at least a BOS token.")
        elif not 0 <= min(prompt) <= max(prompt) < config.vocab_size:
            problems.append(
                f"Prompt {index} holds token ids from {min(prompt)} to {max(prompt)}; allowed are 0 to "
                f"{config.vocab_size - 1}. Encode it with the tokenizer of this model."
            )
        elif room is not None and len(prompt) + max_new_tokens > room:
            problems.append(
                f"Prompt {index} has {len(prompt)} tokens, which with {max_new_tokens} new ones is more than the "
                f"{room} positions of the model; the answer would be noise. Shorten it or lower max_new_tokens."
            )
    if problems:
        raise DataError(problems)
