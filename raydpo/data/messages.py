"""What a row is read into: `Example`, and messages in the spellings of data sets as `{"role", "content", ...}`.

Decision: `from`/`value` and `role`/`content` are the same thing, text parts are joined, other keys of a message
(tool calls, names) are handed to the chat template as they are; images and sound are refused, not dropped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raydpo.data.bad_rows import BadRow, text

Message = dict[str, Any]
Row = Mapping[str, Any]

_ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "chatbot": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}


@dataclass(frozen=True)
class Tokens:
    """Ids that came with a row.

    prompt: of the prompt.
    answers: of each answer, chosen first.
    tokenizer: digest of what gives the ids their meaning.
    masks: of each answer, which of its tokens the loss covers, None for all; empty: None for every answer.
    """

    prompt: list[int]
    answers: list[list[int]]
    tokenizer: str
    masks: tuple[list[bool] | None, ...] = ()


@dataclass(frozen=True)
class Example:
    """One prompt with its answers. Plain: all are str. Conversation: all are lists of messages.

    prompt: text, or messages.
    answers: chosen first.
    plain: the prompt as text, answer separator included, of instruction rows that can also be read without a chat template.
    tools: for the chat template.
    label: whether the one answer is desirable, for labelled rows.
    tokens: ids instead of text; prompt and answers are empty then.
    template_settings: variables of the chat template, of the run and of the row.
    """

    prompt: str | list[Message]
    answers: list[str] | list[list[Message]]
    plain: str | None = None
    tools: Any = None
    label: bool = True
    tokens: Tokens | None = None
    template_settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_conversation(self) -> bool:
        return isinstance(self.prompt, list)


def is_message(value: Any) -> bool:
    """Whether `value` has the shape of one message."""
    return isinstance(value, Mapping) and (
        ("role" in value and ("content" in value or bool(value.get("tool_calls"))))
        or ("from" in value and "value" in value)
    )


def is_messages(value: Any) -> bool:
    """Whether `value` has the shape of a list of messages."""
    return isinstance(value, list) and bool(value) and is_message(value[0])


def messages(value: Any, name: str) -> list[Message]:
    """`value` as a list of at least one message. BadRow when it is not."""
    if value is None:
        raise BadRow("missing_field", f"{name} is missing")
    if not isinstance(value, list):
        raise BadRow("not_a_string", f"{name} is {type(value).__name__}, not a list of messages")
    if not value:
        raise BadRow("missing_field", f"{name} is an empty list")
    return [_message(item, f"{name}[{index}]") for index, item in enumerate(value)]


def tools_of(row: Row) -> list[Any] | None:
    """Descriptions of tools for the chat template: a list, or one written as JSON text."""
    tools = row.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(text(tools, "tools"))
        except (ValueError, RecursionError) as error:
            raise BadRow("malformed_json", f"tools: {error}") from error
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRow("not_a_string", "tools is not a list of objects")
    _check_deep(tools, "tools")
    return tools


def _message(value: Any, name: str) -> Message:
    if not isinstance(value, Mapping):
        raise BadRow("not_a_string", f"{name} is {type(value).__name__}, not a message")
    role_key, content_key = ("from", "value") if "from" in value and "role" not in value else ("role", "content")
    role = text(value.get(role_key), f"{name}.{role_key}")
    known = _ROLES.get(role.strip().lower())
    if known is None:
        raise BadRow("unknown_role", f"{name}.{role_key} is {role[:40]!r}")
    content = value.get(content_key)
    others = {key: other for key, other in value.items() if key not in (role_key, content_key) and other is not None}
    if isinstance(content, list):
        content = "".join(_part(part, f"{name}.{content_key}") for part in content)
    if content is None and others.get("tool_calls"):
        content = ""
    _check_deep(others, name)
    return {"role": known, "content": text(content, f"{name}.{content_key}"), **others}


def _part(part: Any, name: str) -> str:
    if not isinstance(part, Mapping):
        raise BadRow(
            "not_a_string", f"{name} holds a part that is {type(part).__name__}, not an object with type and text"
        )
    if part.get("type", "text") != "text":
        raise BadRow("not_a_string", f"{name} holds a part of type {str(part['type'])[:40]!r}; only text is supported")
    if part.get("text") is None:
        keys = ", ".join(str(key)[:40] for key in part)
        raise BadRow("missing_field", f"{name} holds a text part with the keys {keys}; its text belongs under text")
    return text(part["text"], name)


def _check_deep(value: Any, name: str) -> None:
    """Every string inside `value` must be readable text, since a chat template may write it."""
    if isinstance(value, str):
        text(value, name)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _check_deep(key, name)
            _check_deep(item, name)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_deep(item, name)
