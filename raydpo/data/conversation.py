"""One conversation as text: its prompt, its answers, what the assistant says in them, and the proof that all of it is there.

What comes in: turns of the prompt and of each answer. What goes out: `Written`, or BadRow.
Decision: what is trained is what the template writes for the whole conversation; where each turn of an answer begins and
ends is asked of the template (`turn_spans`), never the place where its text is found. The price is two to six renderings a
turn, for answers of several turns alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from raydpo.data.bad_rows import BadRow
from raydpo.data.chat_template import Template
from raydpo.data.messages import Message
from raydpo.data.pieces import dropped
from raydpo.data.prompt_end import prompt_text
from raydpo.data.spellings import spellings
from raydpo.data.turn_spans import Span, joined, turn_spans


@dataclass(frozen=True)
class Written:
    """What a template wrote.

    prompt, answers: texts; each answer follows the prompt.
    spans: of each answer, the ranges of its characters that are the assistant's; None where all of it is.
    reasoning_dropped: pieces of reasoning in the prompt that the template leaves out of earlier turns.
    """

    prompt: str
    answers: list[str]
    spans: list[list[Span] | None]
    reasoning_dropped: int = 0

    def unmarked(self, restore: Callable[[str], str]) -> Written:
        """The same after `restore`, which changes every text piece by piece."""
        spans = [
            None if ranges is None else [(len(restore(text[:a])), len(restore(text[:b]))) for a, b in ranges]
            for text, ranges in zip(self.answers, self.spans, strict=True)
        ]
        return replace(self, prompt=restore(self.prompt), answers=list(map(restore, self.answers)), spans=spans)


def write_conversation(template: Template, prompt: list[Message], answers: list[list[Message]]) -> Written:
    """Text of `prompt` with each of `answers` behind it. BadRow: template_error, prefix_mismatch, template_dropped.

    Where the template drops or refuses a spelling (arguments as objects, content as text), it is asked with the other one.
    """
    refused: BadRow | None = None
    for spelling in spellings(template.source, [*prompt, *(turn for turns in answers for turn in turns)]):
        try:
            return _write(template, spelling(prompt), [spelling(turns) for turns in answers])
        except BadRow as bad:
            refused = bad if refused is None or bad.reason != "template_error" else refused
            if bad.reason not in ("template_error", "template_dropped"):
                break
    assert refused is not None, "there is at least one spelling"
    raise refused


def _write(template: Template, prompt: list[Message], answers: list[list[Message]]) -> Written:
    head = prompt_text(template, prompt)
    full = [template.write(joined(prompt, turns)) for turns in answers]
    if not all(text.startswith(head) for text in full):
        raise BadRow("prefix_mismatch", "the chat template writes the prompt differently when this answer follows")
    texts = [text[len(head) :] for text in full]
    reasoning = _check_prompt(template, prompt, head)
    for turns, text in zip(answers, texts, strict=True):
        if missing := dropped(turns, text, lambda changed: _attempt(template, joined(prompt, changed))):
            raise BadRow("template_dropped", f"the chat template does not write {missing[0]} of the answer")
    spans = [turn_spans(template, prompt, turns, head, text) for turns, text in zip(answers, full, strict=True)]
    return Written(head, texts, spans, reasoning)


def _attempt(template: Template, turns: Sequence[Message], *, generation: bool = False) -> str:
    """What the template writes, nothing where it refuses."""
    try:
        return template.write(turns, generation=generation)
    except BadRow:
        return ""


def _check_prompt(template: Template, prompt: list[Message], head: str) -> int:
    """Number of pieces of reasoning that the template leaves out of earlier turns. BadRow for anything else it drops."""
    asks = prompt[-1]["role"] != "assistant"
    missing = dropped(prompt, head, lambda changed: _attempt(template, changed, generation=asks), free="system")
    if lost := [piece for piece in missing if piece.kind != "reasoning"]:
        raise BadRow("template_dropped", f"the chat template does not write {lost[0]}")
    for name in _names(template.tools):
        if name not in head:
            raise BadRow("template_dropped", f"the chat template does not write the tool {name[:60]!r}")
    return len(missing)


def _names(tools: object) -> Iterator[str]:
    for tool in tools if isinstance(tools, list) else ():
        described = tool.get("function", tool)
        if isinstance(described, dict) and isinstance(name := described.get("name"), str):
            yield name
