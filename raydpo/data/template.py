"""From an `Example` to text: the chat template for conversations, nothing for plain text.

What goes out: prompt and answers as strings whose concatenation is what the model reads, and whether control tokens
inside have to be read as plain text.
Decision: what a row says is found again in what is written for it, or the row is left out; templates drop text without a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from raydpo.data.bad_rows import BadRow, answer_texts
from raydpo.data.chat_template import Template, beyond_bounds
from raydpo.data.conversation import write_conversation
from raydpo.data.media_tokens import refuse_media_tokens
from raydpo.data.messages import Example, Message, Tokens
from raydpo.data.spellings import REASONING
from raydpo.data.tokenizer import TextTokenizer, count_aliases, holds_private_marks
from raydpo.errors import DataError

_MOST_TEMPLATE_CHARS = 1 << 20

ControlTokens = Literal["plain", "quarantine", "allow"]
"""What becomes of control tokens inside the text: `data.control_tokens`."""


@dataclass(frozen=True)
class Rendered:
    """What is tokenised: `prompt`, and `prompt + answer` for each answer.

    prompt, answers: texts.
    plain: control tokens inside are text (aliases stand for those of the template).
    templated: came from a template.
    found: how many control tokens the data holds.
    tokens: ids that are used as they are; there is no text then.
    spans: of each answer, the ranges of its characters that are the assistant's, None for all; empty: None for every answer.
    reasoning_dropped: how many pieces of reasoning in earlier turns of the prompt the template leaves out.
    """

    prompt: str
    answers: list[str]
    plain: bool = False
    templated: bool = False
    found: int = 0
    tokens: Tokens | None = None
    spans: list[list[tuple[int, int]] | None] = field(default_factory=list)
    reasoning_dropped: int = 0

    @property
    def num_aliases(self) -> list[int]:
        """Control tokens that the template wrote: in the prompt, then in the prompt with each answer."""
        if not (self.plain and self.templated):
            return [0] * (1 + len(self.answers))
        return [count_aliases(self.prompt), *(count_aliases(self.prompt + answer) for answer in self.answers)]


def no_template(tokenizer: TextTokenizer, name: str) -> DataError:
    """The error for conversational data in file `name` when the tokenizer has no chat template."""
    return DataError(
        f"{name} holds conversations, but the tokenizer of {tokenizer.path!r} has no chat template, so there is no "
        "agreed way to write them down for this model. Do one of three: set data.chat_template to the path of a Jinja "
        "template file; set model.path to a checkpoint whose tokenizer carries a template (most instruct models do); "
        "or give the data as plain text with the fields prompt, chosen, rejected, which needs no template."
    )


def read_template(path: str | None) -> str | None:
    """Text of the file that data.chat_template names. Raises DataError when it cannot be read."""
    if path is None:
        return None
    try:
        place = Path(path).expanduser()
        if place.exists() and not place.is_file():
            raise OSError("it is no file")
        with place.open(encoding="utf-8") as file:
            text = file.read(_MOST_TEMPLATE_CHARS + 1)
        if len(text) > _MOST_TEMPLATE_CHARS:
            raise OSError(f"it has more than {_MOST_TEMPLATE_CHARS:,} characters")
        return text
    except (OSError, ValueError) as error:
        raise DataError(
            f"data.chat_template: {path!r} cannot be read: {error}. Give the path of a Jinja file."
        ) from error


def open_tokenizer(path: str, chat_template: str | None) -> TextTokenizer:
    """Tokenizer of a model folder or hub id, with the template of file `chat_template` (data.chat_template) if given.

    Raises DataError when there is no usable tokenizer or the file is not Jinja.
    """
    from jinja2 import TemplateSyntaxError

    tokenizer = TextTokenizer(path, read_template(chat_template))
    if not tokenizer.has_template:
        return tokenizer
    try:
        Template(tokenizer).write([{"role": "user", "content": "x"}], generation=True)
    except BadRow as bad:
        if bad.reason == "template_limits":
            raise beyond_bounds(tokenizer, bad) from bad
        if chat_template is not None and isinstance(bad.__cause__, TemplateSyntaxError):
            raise DataError(
                f"data.chat_template: {chat_template!r} is not a Jinja template: {bad.detail} (line {bad.__cause__.lineno}). "
                "Fix it, or leave data.chat_template out to use the tokenizer's own."
            ) from bad
    return tokenizer


def render(example: Example, tokenizer: TextTokenizer, policy: ControlTokens) -> Rendered:
    """Text of one example. BadRow when it cannot be written or read."""
    if example.tokens is not None:
        return Rendered("", [], tokens=example.tokens)
    refuse_media_tokens(_strings([example.prompt, example.answers]), tokenizer.control_tokens)
    if isinstance(example.prompt, list) and (tokenizer.has_template or example.plain is None):
        return _render_conversation(example, tokenizer, policy)
    if isinstance(example.prompt, list):
        prompt = example.plain or ""
        answers = [turns[-1]["content"] for turns in example.answers]  # type: ignore[index]
    else:
        prompt, answers = example.prompt, list(example.answers)
    answer_texts(answers)
    found = sum(map(tokenizer.count_control, (prompt, *answers)))
    plain = _by_policy(found, policy, (prompt, *answers))
    return Rendered(prompt, answers, plain=plain, found=found)


def render_prompt(example: Example, tokenizer: TextTokenizer, policy: ControlTokens) -> Rendered:
    """Text of the prompt of `example` alone, as it stands before an answer in training. BadRow as of `render`."""
    return render(replace(example, answers=[]), tokenizer, policy)


def _by_policy(found: int, policy: str, texts: Sequence[str]) -> bool:
    """Whether the row must be read with control tokens as plain text."""
    if not found or policy == "allow":
        return False
    if policy == "quarantine":
        raise BadRow("control_tokens", f"the text holds {found} control tokens of the tokenizer")
    if any(map(holds_private_marks, texts)):
        raise BadRow("control_tokens", "the text holds control tokens and code points U+10FFFA to U+10FFFD")
    return True


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.values() for text in _strings(item)]
    return [text for item in value for text in _strings(item)] if isinstance(value, list | tuple) else []


def _render_conversation(example: Example, tokenizer: TextTokenizer, policy: str) -> Rendered:
    answers: list[list[Message]] = example.answers  # type: ignore[assignment]
    for turns in answers:
        if len(turns) == 1 and not turns[0].get("tool_calls") and not any(turns[0].get(key) for key in REASONING):
            answer_texts([turns[0]["content"]])
    if len(answers) > 1 and answers[0] == answers[1]:
        raise BadRow("identical_answers", "chosen and rejected are the same messages")
    strings = _strings([example.prompt, answers, example.tools])
    found = sum(map(tokenizer.count_control, strings))
    plain = _by_policy(found, policy, strings)
    prompt, tools = example.prompt, example.tools
    if plain:
        prompt, answers, tools = tokenizer.mark(prompt), tokenizer.mark(answers), tokenizer.mark(tools)
    template = Template(tokenizer, tools, example.template_settings)
    written = write_conversation(template, prompt, answers)  # type: ignore[arg-type]
    if plain:
        written = written.unmarked(tokenizer.from_marked)
    spans = written.spans if any(written.spans) else []
    return Rendered(
        written.prompt,
        written.answers,
        plain=plain,
        templated=True,
        found=found,
        spans=spans,
        reasoning_dropped=written.reasoning_dropped,
    )
