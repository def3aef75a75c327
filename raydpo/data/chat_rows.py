"""Rows that hold conversations: message lists, UltraFeedback, ShareGPT and Alpaca ranking.

Decision: whole conversations are split where they part, which must be at a turn of the assistant; everything before must
agree. An answer may so hold several turns, those of tools and users among them; the loss covers the assistant's alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from raydpo.data.bad_rows import BadRow, field_of, text
from raydpo.data.format import Format
from raydpo.data.messages import Example, Message, Row, is_message, is_messages, messages, tools_of
from raydpo.data.plain_rows import fits_standard, sides_of
from raydpo.data.row_view import is_absent


def whole(sides: Sequence[list[Message]], row: Row) -> Example:
    """Split whole conversations where they part, at a turn of the assistant; one, or equal ones, at the last turn."""
    for turns in sides:
        if turns[-1]["role"] != "assistant":
            raise BadRow("no_assistant_turn", "the conversation does not end with an assistant turn")
    parted = len(sides[0]) - 1
    if len(sides) > 1 and any(turns != sides[0] for turns in sides):
        parted = sum(1 for _ in takewhile(all_equal, zip(*sides, strict=False)))
    if any(len(turns) <= parted or turns[parted]["role"] != "assistant" for turns in sides):
        raise BadRow("differing_prompts", "chosen and rejected differ in what the assistant answers to")
    if not parted:
        raise BadRow("missing_field", "the conversation holds no turn before the answer")
    return Example(sides[0][:parted], [turns[parted:] for turns in sides], tools=tools_of(row))


def all_equal(values: Sequence[object]) -> bool:
    """Whether all values are the first one."""
    return all(value == values[0] for value in values)


def _answer_turns(turns: list[Message], name: str) -> list[Message]:
    if turns[-1]["role"] != "assistant":
        raise BadRow("no_assistant_turn", f"{name} does not end with an assistant turn")
    if turns[0]["role"] != "assistant" or any(turn["role"] == "system" for turn in turns):
        raise BadRow("bad_turn_order", f"{name} begins with a turn of somebody else, or holds a system text")
    return turns


def conversation_of(row: Row, sides: Sequence[str]) -> Example:
    """Message lists under `sides`: whole conversations, or answers to the messages (or text) under `prompt`."""
    found = [messages(field_of(row, side), side) for side in sides]
    given = row.get("prompt")
    answers_only = all(turns[0]["role"] == "assistant" for turns in found)
    if isinstance(given, str):
        prompt = [{"role": "user", "content": text(given, "prompt")}]
    else:
        prompt = messages(given, "prompt") if given else []
    if not answers_only:
        # UltraFeedback writes the prompt next to whole conversations; these are what counts.
        if prompt and not isinstance(given, str) and any(turns[: len(prompt)] != prompt for turns in found):
            raise BadRow("differing_prompts", "the conversations do not begin with the messages of prompt")
        return whole(found, row)
    if not prompt:
        raise BadRow("missing_field", "prompt is missing, and the answers hold no turn of the user")
    answers = [_answer_turns(turns, side) for side, turns in zip(sides, found, strict=True)]
    return Example(prompt, answers, tools=tools_of(row))


def fits_conversational(row: Row) -> bool:
    """chosen and rejected are message lists; a prompt, if any, is one too."""
    return (
        is_messages(row.get("chosen")) and is_messages(row.get("rejected")) and not isinstance(row.get("prompt"), str)
    )


def fits_ultrafeedback(row: Row) -> bool:
    """chosen and rejected are message lists, the prompt is text."""
    return is_messages(row.get("chosen")) and is_messages(row.get("rejected")) and isinstance(row.get("prompt"), str)


def message_pair(row: Row, num_answers: int) -> Example:
    """Message lists under chosen and rejected, with or without a prompt."""
    return conversation_of(row, sides_of(num_answers))


def fits_sharegpt(row: Row) -> bool:
    """A conversation, and one answer each under chosen and rejected."""
    sides = [row.get("chosen"), row.get("rejected")]
    if is_messages(row.get("conversations")):
        return all(isinstance(side, str) or is_message(side) or is_messages(side) for side in sides)
    return is_messages(row.get("messages")) and all(isinstance(side, str) or is_message(side) for side in sides)


def sharegpt(row: Row, num_answers: int) -> Example:
    """A conversation, and the two answers to it; one that the assistant ends is continued by them."""
    name = "conversations" if row.get("conversations") is not None else "messages"
    prompt = with_system(messages(field_of(row, name), name), row)
    answers = []
    for side in sides_of(num_answers):
        value = field_of(row, side)
        turns = [{"role": "assistant", "content": text(value, side)}] if isinstance(value, str) else None
        answers.append(_answer_turns(turns or messages(value if isinstance(value, list) else [value], side), side))
    return Example(prompt, answers, tools=tools_of(row))


def with_system(turns: list[Message], row: Row) -> list[Message]:
    """`turns` behind the system text of the row. BadRow two_systems when they begin with another one."""
    if is_absent(row.get("system")):
        return turns
    said = text(row["system"], "system")
    if turns[0]["role"] in ("system", "developer"):
        if turns[0]["content"].strip() != said.strip():
            raise BadRow("two_systems", f"system says {said[:60]!r}, and the conversation {turns[0]['content'][:60]!r}")
        return turns
    return [{"role": "system", "content": said}, *turns]


def fits_alpaca(row: Row) -> bool:
    """An instruction with chosen and rejected, or with a list of outputs, or (sft) with one output."""
    output = row.get("output")
    pair = fits_standard(row) or (isinstance(output, list) and len(output) > 1 and isinstance(output[0], str))
    return isinstance(row.get("instruction"), str) and (pair or isinstance(output, str))


def alpaca(row: Row, num_answers: int) -> Example:
    """instruction and input are the user's turn; system and history go before. output: [better, worse]."""
    request = text(row.get("instruction"), "instruction")
    if row.get("input"):
        request += "\n" + text(row["input"], "input")
    if row.get("chosen") is not None or row.get("output") is None:
        answers = [text(row.get(side), side) for side in sides_of(num_answers)]
    else:
        output = row["output"]
        given = output if isinstance(output, list) else [output]
        if len(given) < num_answers:
            raise BadRow("too_few_answers", f"output holds {len(given)} answers, {num_answers} are needed")
        answers = [text(answer, "output") for answer in given[:num_answers]]
    prompt = with_system([*_history(row), {"role": "user", "content": request}], row)
    plain = request + "\n\n" if len(prompt) == 1 else None
    return Example(prompt, [[{"role": "assistant", "content": answer}] for answer in answers], plain=plain)


def _history(row: Row) -> list[Message]:
    turns: list[Message] = []
    history = row.get("history") or []
    for turn in history if isinstance(history, list) else [history]:
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise BadRow("not_a_string", "history is not a list of [request, answer]")
        turns.append({"role": "user", "content": text(turn[0], "history")})
        turns.append({"role": "assistant", "content": text(turn[1], "history")})
    return turns


ALPACA = Format("alpaca", "instructions with ranked answers", fits_alpaca, alpaca, place=20)
SHAREGPT = Format("sharegpt", "conversations with ranked answers", fits_sharegpt, sharegpt, place=30)
ULTRAFEEDBACK = Format("ultrafeedback", "message lists next to a prompt", fits_ultrafeedback, message_pair, place=50)
CONVERSATIONAL = Format("conversational", "message lists", fits_conversational, message_pair, place=60)
