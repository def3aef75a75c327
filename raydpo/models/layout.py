"""Which way a model reads sequences: one packed stream with shared prompts, or padded rows. Decided once, by trying.

Decision: a model is asked, not its class: two answers to one prompt are scored packed and by plain forwards, and once
more with another first answer, which must not touch the second. Where that fails (convolutions, linear attention, state
space layers, a model that drops the segments) rows are padded instead. The price is four forwards of eight tokens at
every start.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any, Literal

import torch

from raydpo.errors import ConfigError
from raydpo.models.attention import HALF, register, windows_passed
from raydpo.models.config_file import num_positions
from raydpo.models.logprobs import AnswerLogProbs, SequenceBatch
from raydpo.models.small_copy import NoSmallCopy, small_copy
from raydpo.models.text_part import device_of
from raydpo.models.together import Together, one_by_one

Layout = Literal["packed", "padded"]
TOLERANCE_NATS = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Packed against plain forwards, by dtype; 0.1 for the others."""
LEAK_NATS = {torch.float64: 1e-12, torch.float32: 2e-6}
"""How much another first answer may move the second, by dtype; 1e-3 for the others. Most models: not at all."""
PROMPT, ANSWERS, OTHER = [0, 1, 2], ([3, 4], [5, 6, 7]), [9, 8]


def choose_layout(model: Any, attention: str, together: Together = one_by_one) -> tuple[Layout, str]:
    """("packed", "") with the model switched to shared prompts, or ("padded", why) with the model as it was.

    attention: "auto" tries; any other name is the user's choice of padded rows with that attention. together: makes forwards
    that do not wait for each other.
    """
    if attention != "auto":
        return "padded", f"model.attention is {attention}"
    if window := _window_of_the_mask(model):
        return "padded", window
    if model.dtype in HALF:
        with suppress(NoSmallCopy):
            layout, why = choose_layout(small_copy(model).float(), attention)
            if layout == "packed":
                model.set_attn_implementation(register())
            return layout, why
    before = model.config._attn_implementation
    plain = torch.cat(together([partial(_plain, model, answer) for answer in ANSWERS]))
    try:
        model.set_attn_implementation(register())
        with windows_passed() as windows:
            packed, other = together([partial(_packed, model, first) for first in (ANSWERS[0], OTHER)])
        leak = float((other - packed)[len(OTHER) :].abs().max())
    except (ValueError, KeyError, TypeError, NotImplementedError, RuntimeError, AttributeError) as error:
        model.set_attn_implementation(before)
        return "padded", f"{type(model).__name__} does not take packed answers: {error}"
    if _has_window(model) and not any(windows):
        model.set_attn_implementation(before)
        return "padded", f"{type(model).__name__} has its sliding window in the mask alone, if it has one"
    difference = float((packed - plain).abs().max())
    if difference <= TOLERANCE_NATS.get(model.dtype, 0.1) and leak <= LEAK_NATS.get(model.dtype, 1e-3):
        return "packed", ""
    model.set_attn_implementation(before)
    if leak > LEAK_NATS.get(model.dtype, 1e-3):
        return "padded", f"in {type(model).__name__} an answer reaches the next one other than by attention"
    return "padded", f"{type(model).__name__} gives packed answers other log-probs ({difference:.2g} nats apart)"


def _window_of_the_mask(model: Any) -> str:
    if getattr(model.config.get_text_config(), "attention_chunk_size", None):
        return f"{type(model).__name__} attends within chunks, which are in the mask alone"
    return ""


def _has_window(model: Any) -> bool:
    """Whether some layers may see no further than a window, which no short probe can show."""
    config = model.config.get_text_config()
    return (
        getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", None) is not False
    )


def longest_exact(model: Any) -> int | None:
    """Tokens beyond which a model rescales its rotary positions by the longest sequence of a batch; None: it does not."""
    config = model.config.get_text_config()
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    several = [found] if "rope_type" in found else [part for part in found.values() if isinstance(part, dict)]
    scaled = [part for part in several if part.get("rope_type") in ("dynamic", "longrope")]
    name = "original_max_position_embeddings"
    original = getattr(config, name, None) or num_positions(config)
    return min((limit for part in scaled if (limit := part.get(name) or original) is not None), default=None)


def check_lengths(model: Any, longest: int) -> None:
    """Raises ConfigError where log-probs of a row would depend on the other rows of its batch."""
    limit = longest_exact(model)
    if limit is not None and longest > limit:
        raise ConfigError(
            f"model.path: {type(model).__name__} rescales its rotary positions beyond {limit} tokens, for a whole batch by its "
            f"longest row, and the longest here has {longest}. Log-probs would have depended on which rows stand "
            f"together, so nothing was computed. Set data.max_length: {limit}."
        )


@torch.no_grad()
def _plain(model: Any, answer: list[int]) -> torch.Tensor:
    ids = torch.tensor([PROMPT + answer], device=device_of(model))
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    nats: torch.Tensor = logits.gather(1, ids[0, 1:, None]).squeeze(1)[len(PROMPT) - 1 :]
    return nats


@torch.no_grad()
def _packed(model: Any, first: list[int]) -> torch.Tensor:
    found: torch.Tensor = AnswerLogProbs(model)(_stream(first).to(device_of(model))).float()
    return found


def _stream(first: list[int]) -> SequenceBatch:
    return SequenceBatch(
        input_ids=torch.tensor([[*PROMPT, *first, *ANSWERS[1]]]),
        attention_mask=None,
        position_ids=torch.tensor([[0, 1, 2, 3, 4, 3, 4, 5]]),
        segments=((0, 5, 0, 0), (5, 8, 0, 3)),
        predictors=torch.tensor([2, 3, 2, 5, 6]),
        targets=torch.tensor([*first, *ANSWERS[1]]),
        sequences=torch.tensor([0, 0, 1, 1, 1]),
        num_sequences=2,
    )
