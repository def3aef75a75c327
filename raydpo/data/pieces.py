"""The proof of rendering: every piece of a conversation is in the text that its template wrote.

What comes in: turns, and the text that was written for them. What goes out: the pieces that are not in it.
Decision: a piece is looked for behind the turns before it. Where its text stands more than once, so that another piece could
pass for it, the template is asked again with a mark behind the piece: what is written follows the mark. Outer white space
and the spelling of JSON are the template's. The price is a rendering for each piece that is found twice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from raydpo.data.messages import Message
from raydpo.data.spellings import REASONING, calls_of, said

Kind = Literal["content", "reasoning", "call"]
Rewrite = Callable[[Sequence[Message]], str]
"""Other turns of the same shape -> the text that the template writes for them."""

MARK = "\U0010fff8"
"""A code point of nobody, put behind a text to see where the template writes it."""
_THOUGHT = re.compile(r"<(?:\w+:)?think>(.*?)</(?:\w+:)?think>|\[THINK\](.*?)\[/THINK\]|^(.*?)</think>", re.DOTALL)
"""Reasoning inside a text. One that begins with it may lack the tag in front, which the prompt has written then."""


@dataclass(frozen=True)
class SaidPiece:
    """One thing that a turn says.

    turn: its index. role: of the turn. kind: what it is.
    text: what must be found; several for the parts of a tool call.
    """

    turn: int
    role: str
    kind: Kind
    text: tuple[str, ...]

    def __str__(self) -> str:
        what = {"content": "text", "reasoning": "reasoning", "call": "tool call"}[self.kind]
        return f"the {what} of turn {self.turn + 1} ({self.role}): {' '.join(self.text)[:60]!r}"


def pieces(turns: Sequence[Message]) -> Iterator[SaidPiece]:
    """What `turns` say, in order."""
    for number, turn in enumerate(turns):
        role, content = turn["role"], said(turn)
        for key in REASONING:
            if isinstance(turn.get(key), str) and turn[key].strip():
                yield SaidPiece(number, role, "reasoning", (turn[key].strip(),))
        for kind, part in _parts(content) if role == "assistant" else _unparted(content):
            if part.strip():
                yield SaidPiece(number, role, kind, (part.strip(),))
        for call in calls_of(turn):
            yield SaidPiece(number, role, "call", tuple(_leaves([call.get("name"), call.get("arguments")])))


def _unparted(content: str) -> Iterator[tuple[Kind, str]]:
    yield "content", content


def _parts(content: str) -> Iterator[tuple[Kind, str]]:
    done = 0
    for thought in _THOUGHT.finditer(content):
        yield "content", content[done : thought.start()]
        yield "reasoning", next(part for part in thought.groups() if part is not None)
        done = thought.end()
    yield "content", content[done:]


def dropped(turns: Sequence[Message], written: str, rewrite: Rewrite, free: str = "") -> list[SaidPiece]:
    """Pieces of `turns` that are not in `written`. free: role whose text may stand anywhere in it (a system text)."""
    missing: list[SaidPiece] = []
    start = end = turn = 0
    for piece in pieces(turns):
        if piece.turn != turn:
            turn, start = piece.turn, end
        places = [_place(written, text, 0 if piece.role == free else start) for text in piece.text]
        if any(place is None for place in places):
            missing.append(piece)
            continue
        stop = max((place[1] for place in places if place is not None), default=start)
        if _could_be_another(piece, written) and not _follows(turns, piece, rewrite):
            missing.append(piece)
        elif piece.role != free:
            end = max(end, stop)
    return missing


def _place(written: str, text: str, start: int) -> tuple[int, int] | None:
    found = [(at, at + len(form)) for form in _spellings(text) if (at := written.find(form, start)) >= 0]
    return min(found, default=None)


def _spellings(text: str) -> Iterator[str]:
    """`text` as it is, and inside a JSON string."""
    yield text
    for is_ascii in (False, True):
        yield json.dumps(text, ensure_ascii=is_ascii)[1:-1]
    if text in ("true", "false", "null"):
        yield {"true": "True", "false": "False", "null": "None"}[text]


def _leaves(value: Any) -> Iterator[str]:
    """Names and values in an object, as text."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from _leaves(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner)
    elif isinstance(value, str):
        yield from (part for part in (value.strip(),) if part)
    else:
        yield json.dumps(value)


def _could_be_another(piece: SaidPiece, written: str) -> bool:
    return piece.kind == "call" or written.count(piece.text[0]) > 1


def _follows(turns: Sequence[Message], piece: SaidPiece, rewrite: Rewrite) -> bool:
    """Whether the template writes a mark that is put behind the piece. True where it refuses the changed turns."""
    turn = dict(turns[piece.turn])
    expected = 1
    if piece.kind == "call":
        turn["tool_calls"], expected = _marked_calls(turn["tool_calls"]), len(calls_of(turn))
    else:
        text = piece.text[0]
        for key in ("content", *REASONING):
            if isinstance(value := turn.get(key), str):
                turn[key] = value.replace(text, text + MARK, 1)
            elif isinstance(value, list):
                turn[key] = [{**part, "text": part["text"].replace(text, text + MARK, 1)} for part in value]
    changed = rewrite([*turns[: piece.turn], turn, *turns[piece.turn + 1 :]])
    return changed == "" or changed.count(MARK) >= expected


def marked_at_end(turn: Message) -> Message:
    """`turn` with a mark behind the last thing that it says: the name of its last call, or its content."""
    calls = turn.get("tool_calls")
    if isinstance(calls, list | tuple) and calls:
        return {**turn, "tool_calls": [*calls[:-1], _marked_calls(calls[-1])]}
    content = turn["content"]
    if isinstance(content, list):
        last = content[-1]
        return {**turn, "content": [*content[:-1], {**last, "text": _marked(last["text"])}]}
    return {**turn, "content": _marked(content)}


def _marked(text: str) -> str:
    said_of_it = text.rstrip()
    return said_of_it + MARK + text[len(said_of_it) :]


def _marked_calls(calls: Any) -> Any:
    """Each call with a mark behind its name."""
    if isinstance(calls, list | tuple):
        return [_marked_calls(call) for call in calls]
    if not isinstance(calls, dict):
        return calls
    if isinstance(calls.get("function"), dict):
        return {**calls, "function": _marked_calls(calls["function"])}
    return {**calls, "name": f"{calls.get('name')}{MARK}"}
