"""Gradient checkpointing within a budget: which layers are recomputed, and how many tokens a micro-batch gets.

Comes in: the model before DeepSpeed has it, in training mode, and the training split. Goes out: the split, perhaps with
smaller micro-batches, and one line that says what was chosen.
Decision: every rank measures for itself and comes to the same numbers, because they are counts of bytes on the same
model and shapes; nothing is sent. An example longer than the budget allows is still trained, and the line says so.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from raydpo.config.sections import TrainSection
from raydpo.errors import ConfigError
from raydpo.models.logprobs import AnswerLogProbs
from raydpo.models.memory import ActivationCost, Scale, compute_again, decoder_layers, measure
from raydpo.train.feed import Feed


def fit_activations(
    scoring: AnswerLogProbs, feed: Feed, train: TrainSection, small: tuple[Any, Scale] | None = None
) -> tuple[Feed, str]:
    """Switch gradient checkpointing on as far as configured or needed; returns the feed to train from and the line.

    small: a small copy to measure, and how it stands for the model; None: the model itself is measured.
    Raises ConfigError when there is a budget and the model's activations cannot be measured.
    """
    lengths = feed.sequence_lengths(np.arange(len(feed.table)))
    longest = int(lengths.max(initial=1))
    alone = longest * lengths.shape[1]  # tokens of a micro-batch of the longest example
    wanted = max(train.tokens_per_microbatch, alone)
    num_layers = len(decoder_layers(scoring.model))
    try:
        probed, scale = (scoring, None) if small is None else (AnswerLogProbs(small[0], scoring.chunk_tokens), small[1])
        cost = _measure(probed, feed, longest, scale)
    except (ValueError, KeyError, TypeError, NotImplementedError, RuntimeError, AttributeError) as error:
        if train.activation_memory_gb is not None:
            raise ConfigError(
                f"train.activation_memory_gb: the activations of {type(scoring.model).__name__} could not be measured "
                f"({error}). Nothing was trained. Leave it out and set train.tokens_per_microbatch and "
                "train.gradient_checkpointing by hand."
            ) from error
        if train.gradient_checkpointing:
            compute_again(scoring.model, num_layers)
        return feed, f"activations: no estimate ({error})"
    layers, tokens = num_layers if train.gradient_checkpointing else 0, wanted
    budget = None if train.activation_memory_gb is None else round(train.activation_memory_gb * 1e9)
    if budget is not None:
        layers, tokens = cost.choose(budget, wanted)
    if layers or train.gradient_checkpointing:
        compute_again(scoring.model, layers)
    tokens = min(tokens, train.tokens_per_microbatch)
    line = describe(cost, layers, tokens, alone, train.tokens_per_microbatch, budget, train.sequence_parallel_size)
    return replace(feed, tokens_per_microbatch=tokens), line


def _measure(scoring: AnswerLogProbs, feed: Feed, longest: int, scale: Scale | None) -> ActivationCost:
    model: Any = scoring.model
    attention = model.config._attn_implementation
    runs_here = attention != "flash_attention_2"  # which does not run on the CPU; sdpa keeps as much
    if not runs_here:
        model.set_attn_implementation("sdpa")
    try:
        return measure(
            scoring, feed.layout, num_answers=feed.num_answers, length=longest, is_padded=runs_here, scale=scale
        )
    finally:
        if not runs_here:
            model.set_attn_implementation(attention)


def describe(
    cost: ActivationCost, layers: int, tokens: int, alone: int, asked: int, budget: float | None, num_sharing: int = 1
) -> str:
    """The line before the start. alone: tokens of the longest example; asked: train.tokens_per_microbatch.

    num_sharing: ranks that share a micro-batch, which then have its tokens in equal parts.
    """
    mine = -(-tokens // num_sharing)
    text = f"activations: about {size(cost.bytes(mine, layers))} for {tokens:,} tokens a micro-batch (estimated)"
    text += f" on each of the {num_sharing} ranks that share it" if num_sharing > 1 else ""
    text += f", {layers} of {cost.num_layers} layers recomputed"
    if tokens < asked:
        text += f"; train.tokens_per_microbatch: {asked:,} would not fit into train.activation_memory_gb"
    if alone > tokens:
        needed = cost.bytes(-(-alone // num_sharing), layers)
        text += f"; the longest example has {alone:,} tokens and takes {size(needed)}"
        if budget is not None and needed > budget:
            text += ", more than train.activation_memory_gb"
    return text


def size(num_bytes: float) -> str:
    """Bytes for a person: GB, or MB below one tenth of it."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"
