"""Where a prompt can be cut so that its first part is tokenised once, for the prompt and for every answer behind it.

Comes in: the state of a tokenizer (tokenizer.json), and prompts. Goes out: a place in the text, 0 where there is none.
Decision: a cut is made before a blank between two ASCII letters, and only for tokenizers that are known to split there whatever
stands further on: byte-level ones with GPT-2's, Llama 3's or Qwen 2's pattern. Their pieces end with a run of letters, look at
most at what follows the run, and are encoded one by one, so that ids of both parts are those of the whole. Price: other
tokenizers, such as SentencePiece's, read the prompt again for each answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_LEAST_CHARS = 64
"""Of a first part that is worth a text of its own."""
_BLANK = re.compile(r"[A-Za-z] (?=[A-Za-z])")
_LETTER_AND_BLANK = re.compile(r"[A-Za-z] ")
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PATTERNS = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}",  # Llama 3
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}",  # Qwen 2
}


def can_cut(state: Mapping[str, Any]) -> bool:
    """Whether a tokenizer with this state splits every text before a blank between ASCII letters, for good."""
    return (
        all(step["type"] in ("NFC", "Sequence") for step in _steps(state["normalizer"], "normalizers"))
        and _splits_words(list(_steps(state["pre_tokenizer"], "pretokenizers")))
        and not any(_reaches_over(token) for token in state["added_tokens"])
        and state["model"]["type"] == "BPE"
        and not state["model"].get("dropout")
    )


def cut_of(prompt: str) -> int:
    """Where the first part of `prompt` ends: before its last blank between ASCII letters; 0 where that is not worth it."""
    end = len(prompt)
    while end > _LEAST_CHARS:
        place = prompt.rfind(" ", _LEAST_CHARS, end)
        if place < 0:
            return 0
        if _BLANK.match(prompt, place - 1):
            return place
        end = place
    return 0


def _steps(step: Mapping[str, Any] | None, inner: str) -> Iterator[Mapping[str, Any]]:
    """A step of the tokenizer, or those that it is made of."""
    if step is None:
        return
    if step["type"] != "Sequence":
        yield step
        return
    for each in step[inner]:
        yield from _steps(each, inner)


def _splits_words(steps: list[Mapping[str, Any]]) -> bool:
    """Whether pre-tokenization is byte-level, with a pattern that is known."""
    if not steps or any(step["type"] not in ("Split", "Digits", "ByteLevel") for step in steps):
        return False
    splits = [step for step in steps if step["type"] == "Split"]
    byte_level = [step for step in steps if step["type"] == "ByteLevel"]
    is_known = all(
        step["pattern"].get("Regex") in _PATTERNS and step["behavior"] == "Isolated" and not step["invert"]
        for step in splits
    )
    has_pattern = len(splits) + sum(step["use_regex"] for step in byte_level) == 1
    return is_known and has_pattern and bool(byte_level) and not any(step["add_prefix_space"] for step in byte_level)


def _reaches_over(token: Mapping[str, Any]) -> bool:
    """Whether an added token may hold, or take with it, a blank between letters."""
    takes = token["lstrip"] or token["rstrip"] or token["single_word"]
    return bool(takes or _LETTER_AND_BLANK.search(token["content"]))
