"""Where a prompt ends and an answer begins: decided by the template and the prompt alone.

What comes in: a template and the turns of a prompt. What goes out: the text that stands before every answer.
Decision: it is the common beginning of the text that asks for an answer and of the prompt followed by answers of every kind
(plain, with reasoning, with a tool call); a template may open a reasoning block for generation that a plain answer does not
have, and the block then belongs to the answer. No answer of the data is looked at. The price is one to four renderings more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from raydpo.data.bad_rows import BadRow
from raydpo.data.chat_template import Template
from raydpo.data.messages import Message

_HALF_A_TAG = re.compile(r"[<\[][|/]?[\w|]*$")


def prompt_text(template: Template, turns: Sequence[Message]) -> str:
    """Text of the prompt `turns` up to where any answer begins. BadRow as of `Template.write`."""
    if turns[-1]["role"] == "assistant":
        return template.write(turns, continued=True)
    asking = template.write(turns, generation=True)
    texts = [asking, *_answered(template, turns)]
    cut = _common(texts)
    if cut == len(asking):
        return asking
    cut = _whole(template, texts, cut)
    if cut < len(template.write(turns).rstrip()):
        raise BadRow("prefix_mismatch", "the chat template writes the prompt differently when an answer follows")
    return asking[:cut]


def _common(texts: Sequence[str]) -> int:
    """Characters that all texts begin with."""
    low, high = min(texts), max(texts)  # whatever lies between two texts begins as both do
    return next((at for at, (one, other) in enumerate(zip(low, high, strict=False)) if one != other), len(low))


def _answered(template: Template, turns: Sequence[Message]) -> Iterator[str]:
    """The prompt with each probe behind it that the template takes."""
    for probe, says in _probes(template.source):
        try:
            text = template.write([*turns, probe])
        except BadRow:
            continue  # a template without tools, say: it never writes such an answer
        if all(part in text for part in says):  # one that it leaves something out of is no answer either
            yield text


def _probes(source: str) -> Iterator[tuple[Message, tuple[str, ...]]]:
    """Answers of every kind that the template tells apart, and what they say. They begin with letters that no tag does."""
    plain, thought = "Probe of a plain answer.", "Reasoning of a probe."
    yield {"role": "assistant", "content": plain}, (plain,)
    if "reasoning" in source or "thinking" in source:
        yield (
            {"role": "assistant", "content": plain, "reasoning_content": thought, "thinking": thought},
            (thought, plain),
        )
    if "</think>" in source:
        yield {"role": "assistant", "content": f"<think>\n{thought}\n</think>\n\n{plain}"}, (thought, plain)
    if "tool_calls" in source:
        call = {"type": "function", "id": "probe0000", "function": {"name": "zeta", "arguments": {"key": "value"}}}
        yield {"role": "assistant", "content": "", "tool_calls": [call]}, ("zeta", "value")


def _whole(template: Template, texts: Sequence[str], cut: int) -> int:
    """`cut`, moved back out of the middle of a tag or of a run of white space, which become one token."""
    while True:
        before = cut
        for text in texts:
            cut = _before_a_tag(template, text, cut)
        if any(cut < len(text) and text[cut].isspace() for text in texts):
            cut = len(texts[0][:cut].rstrip())
        if cut == before:
            return cut


def _before_a_tag(template: Template, text: str, cut: int) -> int:
    for token in template.tokenizer.added_tokens:
        start = text.rfind(token, max(0, cut - len(token) + 1), cut + len(token) - 1)
        if 0 <= start < cut < start + len(token):
            return start
    half = _HALF_A_TAG.search(text[:cut])
    return half.start() if half else cut
