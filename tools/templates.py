"""What raydpo makes of conversations under the chat templates of model families: the page docs/templates.md.

    python -m tools.templates > docs/templates.md

Each cell is tried: the ids that would be trained are compared with those of `apply_chat_template` of the whole conversation.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydpo.data.bad_rows import BadRow
from raydpo.data.chat_template import Template
from raydpo.data.encode import Encoded, encode
from raydpo.data.messages import Example, Message
from raydpo.data.spellings import spellings
from raydpo.data.template import render
from raydpo.data.tokenizer import TextTokenizer
from tools import template_families


@dataclass(frozen=True)
class Cell:
    """One conversation under one template.

    is_used: it would be trained. difference: from `apply_chat_template`, empty for none. reason: why it is left out.
    is_whole: `apply_chat_template` itself writes every text of the conversation.
    """

    is_used: bool
    difference: str
    reason: str
    is_whole: bool

    def __str__(self) -> str:
        if not self.is_used:
            return self.reason
        return self.difference or "equal"


def _turn(role: str, content: str, **more: Any) -> Message:
    return {"role": role, "content": content, **more}


_ASK = [_turn("user", "Two plus two?")]
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Its name."}}},
        },
    }
]
_CALL = [{"type": "function", "id": "call00001", "function": {"name": "weather", "arguments": {"city": "Paris"}}}]
_CALLING = _turn("assistant", "", tool_calls=_CALL)
_TOLD = [_turn("tool", "sunny", name="weather", tool_call_id="call00001"), _turn("assistant", "Fine weather.")]
_WEATHER = [_turn("user", "How is it in Paris?")]


def _pair(prompt: list[Message], chosen: list[Message], rejected: str, tools: Any = None) -> Example:
    return Example(prompt, [chosen, [_turn("assistant", rejected)]], tools=tools)


CONVERSATIONS: Mapping[str, Example] = {
    "plain": _pair(_ASK, [_turn("assistant", "Four")], "Five"),
    "multi-turn": _pair(
        [_turn("user", "Hello."), _turn("assistant", "Good day."), *_ASK], [_turn("assistant", "Four")], "Five"
    ),
    "system": _pair([_turn("system", "Be terse."), *_ASK], [_turn("assistant", "Four")], "Five"),
    "tools": _pair(_WEATHER, [_CALLING], "No idea.", _TOOLS),
    "reasoning": _pair(_ASK, [_turn("assistant", "Four", reasoning_content="Count to it.")], "Five"),
    "trajectory": _pair(_WEATHER, [_CALLING, *_TOLD], "No idea.", _TOOLS),
}
_TEXTS = {
    "plain": ("Two plus two?", "Four"),
    "multi-turn": ("Hello.", "Good day.", "Two plus two?", "Four"),
    "system": ("Be terse.", "Two plus two?", "Four"),
    "tools": ("How is it in Paris?", "weather"),
    "reasoning": ("Two plus two?", "Count to it.", "Four"),
    "trajectory": ("How is it in Paris?", "weather", "sunny", "Fine weather."),
}


def cells(tokenizer: TextTokenizer) -> Iterator[tuple[str, Cell]]:
    """Each conversation, tried."""
    for name, example in CONVERSATIONS.items():
        whole = _whole(Template(tokenizer, example.tools), [*example.prompt, *example.answers[0]], _TEXTS[name])
        is_whole = all(text in whole for text in _TEXTS[name])
        try:
            rendered = render(example, tokenizer, "plain")
            (found,) = encode(tokenizer, [rendered], max_length=1 << 20, overlong="error")
            if isinstance(found, BadRow):
                raise found
        except BadRow as bad:
            yield name, Cell(False, "", f"{bad.reason}: {bad.detail}", is_whole)
            continue
        yield name, Cell(True, _difference(tokenizer, found, whole), "", is_whole)


def _whole(template: Template, turns: list[Any], texts: tuple[str, ...]) -> str:
    """What `apply_chat_template` writes of `turns`, in the spelling in which it writes most of `texts`; "" if it refuses."""
    found = [""]
    for spelling in spellings(template.source, turns):
        try:
            found.append(template.write(spelling(turns)))
        except BadRow:
            continue
    return max(found, key=lambda written: sum(text in written for text in texts))


def _difference(tokenizer: TextTokenizer, found: Encoded, whole: str) -> str:
    """How the ids that are trained differ from those of the whole conversation; empty when they do not."""
    ours = [*found.prompt_ids, *found.answer_ids[0]]
    (theirs,) = tokenizer.encode([whole])
    bos = tokenizer.bos_id
    said = []
    if bos is not None and (ours[:1] == [bos]) != (theirs[:1] == [bos]):
        said.append("BOS")
        ours, theirs = [[one for at, one in enumerate(ids) if at or one != bos] for ids in (ours, theirs)]
    same = next(
        (at for at, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
    )
    rests = [ours[same:], theirs[same:]]
    if any(rests):
        is_end = all(not tokenizer.control.sub("", tokenizer.decode(rest)).strip() for rest in rests)
        said.append("end" if is_end else f"from token {same} on")
    return " and ".join(said)


def table() -> dict[str, dict[str, Cell]]:
    """Every family with its cells."""
    found = {}
    for name in [*template_families.names(), *template_families.names_of_vllm()]:
        with tempfile.TemporaryDirectory() as folder:
            path = template_families.save(template_families.source(name), Path(folder))
            found[name] = dict(cells(TextTokenizer(str(path))))
    return found


def page(found: Mapping[str, Mapping[str, Cell]]) -> str:
    """The table in Markdown, then why cells are left out."""
    lines = [
        "# Conversations under the chat templates of model families",
        "",
        "Made by `python -m tools.templates`, from the templates that the wheels of TRL and vLLM carry, with vocabularies of",
        "single bytes. vLLM's wheel has those that vLLM falls back to; the examples of its repository are not in it.",
        "Each cell is a pair that was read, rendered and tokenised, compared with `apply_chat_template` of the whole",
        "conversation: *equal*; *end* or *BOS*, where only what stands behind the end of the answer, or the token in front,",
        "differs; *left out*, where the template refuses the conversation or leaves something out of it.",
        "",
        f"| family | {' | '.join(CONVERSATIONS)} |",
        f"| --- |{' --- |' * len(CONVERSATIONS)}",
    ]
    notes = []
    for family, row in found.items():
        lines.append(f"| {family} | {' | '.join(_short(cell) for cell in row.values())} |")
        notes += [f"- {family}, {name}: {_escaped(cell.reason)}" for name, cell in row.items() if not cell.is_used]
    return "\n".join([*lines, "", "## Why conversations are left out", "", *notes]) + "\n"


def _short(cell: Cell) -> str:
    return str(cell) if cell.is_used else "left out"


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("|", "\\|")


if __name__ == "__main__":
    print(page(table()), end="")
