"""What activations cost a token, traced on copies of a few layers whose tensors have shapes and no values.

Comes in: the folder of a config.json. Goes out: the `ActivationCost` that a start would measure, and the cost of a forward
alone. Decision: the operations are those of the CPU, whose attention is one call a segment; kernels of a GPU keep as much or
less. A layer of each kind is traced twice and the rest follows in a straight line; price: kinds in no order are traced whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raydpo.capacity.shared_stream import StretchLogProbs
from raydpo.capacity.skeleton import Lora, depths, fake_copy, lift, without_values
from raydpo.errors import ConfigError
from raydpo.models.attention import register, windows_passed
from raydpo.models.layout import Layout
from raydpo.models.logprobs import AnswerLogProbs, SequenceBatch
from raydpo.models.memory import PART_TOKENS, ActivationCost, Living, decoder_layers, measure

_LENGTHS = (8, 16, 24)
_FAILURES = (ValueError, KeyError, TypeError, NotImplementedError, RuntimeError, AttributeError)


@dataclass(frozen=True)
class Traced:
    """layout: of the batches. training: of forward and backward, of a token of the stream on one of the ranks that share it.
    forward: bytes a token of a forward alone, of whole sequences. forward_head: bytes an answer token of a call of the head in
    it. why: why there is no cost; then the costs are 0. sent: bytes a token of the stream that one of the ranks sends to the
    others in a forward."""

    layout: Layout
    training: ActivationCost
    forward: float
    forward_head: float
    why: str = ""
    sent: float = 0.0


def trace(
    folder: Path,
    *,
    dtype: str,
    lora: Lora,
    attention: str,
    num_answers: int,
    length: int,
    num_layers: int,
    num_sharing: int = 1,
) -> Traced:
    """Trace the model in `folder`. length: tokens of the longest sequence; num_answers: to one prompt; num_sharing: ranks that
    share a stream. Raises ConfigError where its heads, or its rows, cannot be shared."""
    found = []
    try:
        for depth in depths(folder):
            model = fake_copy(folder, depth, dtype, lora)
            with without_values():
                lift(model)
                found.append(_traced(model, attention, num_answers, length, num_sharing))
    except _FAILURES as error:
        nothing = ActivationCost(num_layers, 0, 0, 0, 0, 0, 1)
        return Traced("padded", nothing, 0, 0, f"{type(error).__name__}: {str(error).splitlines()[0]}")
    return found[0] if len(found) == 1 else _continued(found[0], found[1], depths(folder), num_layers)


def _traced(model: Any, attention: str, num_answers: int, length: int, num_sharing: int) -> Traced:
    layout = _layout(model, attention)
    scoring, sent = AnswerLogProbs(model), 0.0
    if num_sharing > 1:
        if layout == "padded":
            raise ConfigError(
                f"train.sequence_parallel_size: {num_sharing} needs a packed stream, and rows of this model are padded. Ranks "
                "would not have seen each other's tokens, so nothing was planned. Leave it out."
            )
        stretch = StretchLogProbs(model, num_sharing)
        sent = _sent(stretch)
        part_tokens = PART_TOKENS * num_sharing
        cost = measure(stretch, layout, num_answers=num_answers, length=length, part_tokens=part_tokens)
    else:
        cost = measure(scoring, layout, num_answers=num_answers, length=length)
    with torch.no_grad():
        forward, head = _forward(scoring, layout, length), _forward_head(scoring)
    return Traced(layout, cost, forward, head, sent=sent)


@torch.no_grad()
def _sent(stretch: StretchLogProbs) -> float:
    tokens = _LENGTHS[0] * stretch.lone.num_ranks
    stretch.hidden(_packed(tokens))
    return stretch.lone.sent_bytes / tokens


def _layout(model: Any, attention: str) -> Layout:
    """As `choose_layout`, which compares log-probs and so needs values: packed where every layer asks our attention."""
    if attention != "auto":
        model.set_attn_implementation("eager" if attention == "eager" else "sdpa")
        return "padded"
    try:
        model.set_attn_implementation(register())
        with torch.no_grad(), windows_passed() as calls:
            AnswerLogProbs(model).hidden(_packed(_LENGTHS[0]))
        if len(calls) >= len(decoder_layers(model)) > 0:
            return "packed"
    except _FAILURES:
        pass
    try:
        model.set_attn_implementation("sdpa")
    except ValueError:
        model.set_attn_implementation("eager")
    return "padded"


def _packed(length: int) -> SequenceBatch:
    ids, nothing = torch.zeros(1, length, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    positions = torch.arange(length)[None]
    return SequenceBatch(ids, None, nothing, nothing, nothing, 1, positions, ((0, length, 0, 0),))


def _forward(scoring: AnswerLogProbs, layout: Layout, length: int) -> float:
    """Bytes a token that live at most in a forward of sequences of `length`: c + b * tokens + q * tokens^2, without c."""
    peaks = []
    for tokens in _LENGTHS:
        batch = _packed(tokens)
        if layout == "padded":
            batch = replace(batch, attention_mask=torch.ones(1, tokens, dtype=torch.int64), position_ids=None)
            batch = replace(batch, segments=None)
        with Living() as living:
            scoring.hidden(batch)
        peaks.append(max(living.trace))
    once, twice, thrice = peaks
    short = _LENGTHS[0]
    q = max(thrice - 2 * twice + once, 0) / (2 * short**2)
    return float((thrice - once) / (2 * short) - 4 * q * short + q * length)


def _forward_head(scoring: AnswerLogProbs) -> float:
    weight, peaks = scoring.head.weight, []
    for tokens in _LENGTHS[:2]:
        hidden_NH = torch.zeros(tokens, weight.shape[1], dtype=weight.dtype)
        with Living() as living:
            scoring.score(hidden_NH, torch.zeros(tokens, dtype=torch.int64))
        peaks.append(max(living.trace))
    return float(peaks[1] - peaks[0]) / (_LENGTHS[1] - _LENGTHS[0])


def _continued(short: Traced, long: Traced, traced: tuple[int, ...], num_layers: int) -> Traced:
    """Of `num_layers` layers, from two numbers of them."""
    rounds = (num_layers - traced[1]) / (traced[1] - traced[0])

    def at(name: str) -> float:
        before, after = getattr(short.training, name), getattr(long.training, name)
        return float(after + (after - before) * rounds)

    training = replace(
        long.training,
        num_layers=num_layers,
        kept=at("kept"),
        kept_again=at("kept_again"),
        passing=at("passing"),
        passing_again=at("passing_again"),
    )
    forward = long.forward + (long.forward - short.forward) * rounds
    sent = long.sent + (long.sent - short.sent) * rounds
    return replace(long, training=training, forward=float(np.maximum(forward, 0)), sent=sent)
