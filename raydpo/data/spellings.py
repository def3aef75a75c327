"""How messages are spelled for a chat template: arguments as objects or JSON text, content as text or parts, reasoning's key.

What comes in: messages as data sets spell them, and the text of a template. What goes out: the same messages in the spellings
that may be tried, the likeliest first. Decision: JSON text of arguments is parsed, since a template that writes arguments
itself would write it a second time; other spellings are for templates that fail on objects or leave content out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from raydpo.data.messages import Message

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message that hold reasoning."""
_PARTS = re.compile(r"""['"]type['"]|\.type\b""")

Spelling = Callable[[list[Message]], list[Message]]


def spellings(source: str, turns: Sequence[Message]) -> Iterator[Spelling]:
    """Spellings of messages for the template `source`; `turns` are all that there are."""
    key = _reasoning_key(source)
    plain = partial(_under, key)
    yield lambda given: as_objects(plain(given))
    if any(calls_of(turn) for turn in turns):
        yield lambda given: as_text(plain(given))
    if _PARTS.search(source):
        yield lambda given: in_parts(as_objects(plain(given)))


def said(turn: Message) -> str:
    """The content of a turn as text, in either spelling."""
    content = turn["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def in_parts(turns: list[Message]) -> list[Message]:
    """`turns` with content as a list of one text part, as templates of models that also see want it."""
    return [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]


def _reasoning_key(source: str) -> str | None:
    """The first of the keys that the template reads."""
    return next((key for key in REASONING if re.search(rf"""(?:\.|['"]){key}\b""", source)), None)


def _under(key: str | None, turns: list[Message]) -> list[Message]:
    """`turns` with their reasoning under `key`, unless the template reads the key that they have."""
    return [_renamed(key, turn) for turn in turns]


def _renamed(key: str | None, turn: Message) -> Message:
    given = [name for name in REASONING if isinstance(turn.get(name), str)]
    if key is None or len(given) != 1 or given[0] == key:
        return turn
    return {**{name: value for name, value in turn.items() if name != given[0]}, key: turn[given[0]]}


def as_objects(turns: list[Message]) -> list[Message]:
    """`turns` with arguments that are JSON text of an object parsed; any other text stays what it is."""
    return _changed(turns, _parsed)


def as_text(turns: list[Message]) -> list[Message]:
    """`turns` with arguments that are objects written as JSON text."""
    return _changed(turns, lambda value: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def calls_of(turn: Message) -> list[Mapping[str, Any]]:
    """The calls of a turn, each with name and arguments."""
    calls = turn.get("tool_calls")
    found = [call.get("function", call) for call in calls or () if isinstance(call, Mapping)]
    return [call for call in found if isinstance(call, Mapping)]


def _changed(turns: list[Message], change: Callable[[Any], Any]) -> list[Message]:
    return [
        {**turn, "tool_calls": _calls(turn["tool_calls"], change)} if turn.get("tool_calls") else turn for turn in turns
    ]


def _calls(calls: Any, change: Callable[[Any], Any]) -> Any:
    return [_call(call, change) for call in calls] if isinstance(calls, list | tuple) else calls


def _call(call: Any, change: Callable[[Any], Any]) -> Any:
    if not isinstance(call, Mapping):
        return call
    if isinstance(inner := call.get("function"), Mapping):
        return {**call, "function": _call(inner, change)}
    return {**call, "arguments": change(call["arguments"])} if call.get("arguments") is not None else call


def _parsed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return found if isinstance(found, dict) else value
