"""Decoding with transformers and a KV cache: one batch of prompts -> the ids behind each.

Decision: prompts of a batch are padded on the left, where the attention mask and the positions skip the padding. What
the model folder's generation config says about sampling does not count, its end-of-sequence ids do. Texts that end an
answer are looked for in the answer alone, so that the last words of a prompt end nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Literal

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from raydpo.generate.limits import Ids, end_ids
from raydpo.schema.pulse import beat
from raydpo.schema.samples import Sampling

Ending = Literal["eos", "stop", "length"]
MARGIN_TOKENS = 8
"""Tokens without text of their own, or with a part of a letter, that may stand within a stop text."""


def settings_for(model: Any, sampling: Sampling, taught: Sequence[int] = ()) -> GenerationConfig:
    """Everything that decides how `model` decodes; it ends at the model's own end-of-sequence ids and at those of `taught`."""
    ends = end_ids(model.generation_config, model.config, taught)
    chances = {} if sampling.greedy else {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    return GenerationConfig(
        do_sample=not sampling.greedy,
        num_beams=1,
        use_cache=True,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,  # behind an end: cut off below
        **chances,
    )


def decode(
    model: Any, prompts: Sequence[Ids], settings: GenerationConfig, stop: StopTexts | None = None
) -> list[tuple[list[int], Ending]]:
    """Ids behind each prompt, its end-of-sequence id included if there is one, and how they ended."""
    model.generation_config = settings  # generate() fills what is unset from here
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), settings.pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    criteria = StoppingCriteriaList([_Beating(), *([] if stop is None else [_Stopped(stop, width)])])
    device = next(model.parameters()).device
    with torch.inference_mode():
        decoded = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=settings,
            stopping_criteria=criteria,
        )
    ends = set(settings.eos_token_id or ())
    return [_cut(row, ends, stop) for row in decoded[:, width:].tolist()]


class StopTexts:
    """Texts that end an answer, and the tokenizer that makes text of ids."""

    def __init__(self, texts: Sequence[str], tokenizer: Any) -> None:
        self._texts, self._tokenizer = tuple(texts), tokenizer
        self._tail_tokens = max(len(text.encode()) for text in texts) + MARGIN_TOKENS

    def in_tails(self, rows: list[list[int]]) -> list[bool]:
        """Whether the last tokens of each row hold one of the texts."""
        return [self._found(text) for text in text_of([row[-self._tail_tokens :] for row in rows], self._tokenizer)]

    def end(self, ids: list[int]) -> int | None:
        """Number of tokens after which the text of `ids` holds one of the texts for the first time; None: it does not."""
        if not self._in(ids):
            return None
        return bisect_left(range(len(ids)), True, key=lambda count: self._in(ids[:count]))

    def _in(self, ids: list[int]) -> bool:
        return self._found(text_of([ids], self._tokenizer)[0])

    def _found(self, text: str) -> bool:
        return any(wanted in text for wanted in self._texts)


class _Beating(StoppingCriteria):  # type: ignore[misc]
    """Stops nothing: it is asked after each token, and says that there was one."""

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        beat()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class _Stopped(StoppingCriteria):  # type: ignore[misc]
    def __init__(self, stop: StopTexts, width: int) -> None:
        self._stop, self._width = stop, width

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.tensor(self._stop.in_tails(input_ids[:, self._width :].tolist()), device=input_ids.device)


def text_of(rows: Sequence[Sequence[int]], tokenizer: Any) -> list[str]:
    """Text of each row, without control tokens."""
    return [tokenizer.decode(list(row), skip_special_tokens=True, clean_up_tokenization_spaces=False) for row in rows]


def _cut(ids: list[int], ends: set[int], stop: StopTexts | None) -> tuple[list[int], Ending]:
    """Drop what stands behind the end: padding, or what was sampled while other rows of the batch went on."""
    length = next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))
    ids = ids[:length]
    ended = bool(ids) and ids[-1] in ends
    stopped = None if stop is None else stop.end(ids)
    if stopped is not None and (stopped < length or not ended):
        return ids[:stopped], "stop"
    return ids, "eos" if ended else "length"
