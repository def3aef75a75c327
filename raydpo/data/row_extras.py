"""What a row may hold next to a prompt and its answers in any layout: a system text, images, ratings of a pair.

Comes in: a row and the example that a layout made of it. Goes out: the example with its system turn, BadRow where that
cannot be, and whether ratings say the opposite of a pair.
Decision: a system text makes a conversation of a plain prompt, since only a chat template knows how it is written down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from raydpo.data.bad_rows import BadRow, number
from raydpo.data.chat_rows import with_system
from raydpo.data.column_names import MEDIA
from raydpo.data.messages import Example, Row
from raydpo.data.plain_rows import HH_ASSISTANT
from raydpo.data.row_view import is_absent, peek

_PLACEHOLDERS = (
    "<image>",
    "<video>",
    "<audio>",
    "<|image|>",
    "<|image_pad|>",
    "<|vision_start|>",
    "<image_soft_token>",
    "[IMG]",
)
_LISTS = ("generations", "responses", "completions", "candidates", "outputs", "answers")
_RATINGS = ("rating", "ratings", "score", "scores", "reward", "rewards")
_SIDES = tuple(
    (first.format("chosen"), first.format("rejected"))
    for first in (
        "score_{}",
        "{}_score",
        "rating_{}",
        "{}_rating",
        "{}-rating",
        "{}-score",
        "reward_{}",
        "{}_reward",
        "{}_avg_rating",
    )
)
_RATED = frozenset((*_RATINGS, *(better for better, _ in _SIDES)))


def with_system_turn(example: Example, row: Row) -> Example:
    """`example` behind the system text of its row, if there is one. BadRow: two_systems, no_place_for_system."""
    if is_absent(row.get("system")):
        return example
    if example.tokens is not None:
        raise BadRow("no_place_for_system", "there is a system text next to token ids, which are used as they are")
    if isinstance(example.prompt, list):
        turns = with_system(example.prompt, row)
        return example if turns == example.prompt else replace(example, prompt=turns, plain=None)
    if example.prompt.endswith(HH_ASSISTANT):
        raise BadRow("no_place_for_system", "there is a system text next to a transcript, which has no turn for it")
    if not example.prompt or is_absent(_prompt_of(row)):
        raise BadRow(
            "no_place_for_system", "there is a system text, and no prompt of its own that it could stand before"
        )
    user = {"role": "user", "content": example.prompt}
    answers = [[{"role": "assistant", "content": answer}] for answer in example.answers]
    return replace(example, prompt=with_system([user], row), answers=answers)


def _prompt_of(row: Row) -> Any:
    names = ("prompt", "instruction", "question", "query", "input")
    return next((found for name in names if not is_absent(found := peek(row, name))), None)


def refuse_media(row: Row, ignored: frozenset[str], example: Example) -> None:
    """BadRow when a row has images, video or sound that are not left out by name, or text that points at them."""
    found = [name for name, value in row.items() if name.lower() in MEDIA and not is_absent(value)]
    if not found:
        return
    if any(name.lower() not in ignored for name in found):
        raise BadRow("unsupported_media", f"the row has {', '.join(found)}; only text can be trained")
    texts = texts_of(example.prompt) + texts_of(example.answers)
    mark = next((mark for mark in _PLACEHOLDERS if any(mark in text for text in texts)), None)
    if mark is not None:
        raise BadRow("unsupported_media", f"the text holds {mark}, the place of what is in {', '.join(found)}")


def texts_of(value: Any) -> list[str]:
    """Every text inside a value; of messages what was said, without roles."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        inner = [value[key] for key in ("content", "value", "text") if key in value]
        return [text for item in inner or value.values() for text in texts_of(item)]
    return [text for item in value for text in texts_of(item)] if isinstance(value, list | tuple) else []


def is_said(value: Any, said: str) -> bool:
    """Whether every text inside `value` is in `said`, the text of an example."""
    texts = [text.strip() for text in texts_of(value)]
    return bool(texts) and all(text in said for text in texts)


def contradicts(row: Row) -> bool:
    """Whether ratings next to an explicit pair say that the rejected answer is the better one."""
    if _RATED.isdisjoint(row):
        return False
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if is_absent(chosen) or is_absent(rejected):
        return False
    for better, worse in _SIDES:
        if better in row and worse in row and (found := _numbers([row[better], row[worse]])) is not None:
            return found[0] < found[1]
    answers = next((row[name] for name in _LISTS if isinstance(row.get(name), list)), None)
    ratings = next((row[name] for name in _RATINGS if isinstance(row.get(name), list)), None)
    if answers is None or ratings is None or len(answers) != len(ratings):
        return False
    said = [_last_text(answer) for answer in answers]
    sides = [_last_text(chosen), _last_text(rejected)]
    if any(side not in said for side in sides):
        return False
    found = _numbers([ratings[said.index(side)] for side in sides])
    return found is not None and found[0] < found[1]


def _numbers(values: list[Any]) -> list[float] | None:
    try:
        return [number(value, "rating") for value in values]
    except BadRow:
        return None


def _last_text(value: Any) -> str:
    texts = texts_of(value[-1] if isinstance(value, list) and value else value)
    return texts[-1].strip() if texts else ""
