"""Greedy decoding with transformers, without an engine: a model folder and prompts in, answers out.

What comes in: a model folder and prompts as token ids. What goes out: the new token ids of each prompt, in the order
given, without the end-of-sequence token and without anything behind it.
Decision: prompts of similar length share a batch; every answer is the one that the prompt gets alone, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raydpo.errors import UserError
from raydpo.generate.decoding import decode, settings_for
from raydpo.generate.limits import Limits
from raydpo.models.pretrained import load_model
from raydpo.schema.samples import Sampling


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
    Limits.of(model.config).check_prompts(prompts, max_new_tokens)
    settings = settings_for(model, Sampling(num_answers=1, max_new_tokens=max_new_tokens, greedy=True))
    answers: list[list[int]] = [[] for _ in prompts]
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(by_length), batch_size):
        batch = by_length[start : start + batch_size]
        decoded = decode(model, [prompts[index] for index in batch], settings)
        for index, (ids, ending) in zip(batch, decoded, strict=True):
            answers[index] = ids[:-1] if ending == "eos" else ids
    return answers
