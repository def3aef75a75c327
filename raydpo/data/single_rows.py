"""Rows of single answers: with a label, or alone.

Decision: a row of a pair that is read for one answer gives the chosen one, so the same files serve sft and nll.
"""

from __future__ import annotations

from dataclasses import replace

from raydpo.data.bad_rows import BadRow, field_of, label, text
from raydpo.data.chat_rows import alpaca, conversation_of, whole
from raydpo.data.format import Format
from raydpo.data.messages import Example, Row, is_messages, messages
from raydpo.data.row_view import is_absent, peek


def fits_text(row: Row) -> bool:
    """One answer with its prompt, a whole conversation, or a text."""
    if is_messages(row.get("messages")) or is_messages(row.get("conversations")):
        return True
    if isinstance(row.get("completion"), str) or is_messages(row.get("completion")):
        return isinstance(row.get("prompt"), str) or is_messages(row.get("prompt"))
    return isinstance(row.get("text"), str) or isinstance(row.get("chosen"), str) or is_messages(row.get("chosen"))


def single(row: Row, num_answers: int) -> Example:
    """prompt and completion (or chosen), messages, or text. A pair cannot be read: missing_field."""
    if num_answers != 1:
        raise BadRow("missing_field", "rejected is missing: this objective compares two answers")
    if row.get("completion") is None:
        for name in ("messages", "conversations"):
            if row.get(name) is not None:
                return whole([messages(row[name], name)], row)
        if row.get("text") is not None:
            return Example("", [text(row["text"], "text")])
    name = "completion" if row.get("completion") is not None else "chosen"
    answer = field_of(row, name)
    if isinstance(answer, list):
        return conversation_of(row, [name])
    prompt = field_of(row, "prompt")
    if isinstance(prompt, list):
        return Example(messages(prompt, "prompt"), [[{"role": "assistant", "content": text(answer, name)}]])
    return Example(text(prompt, "prompt"), [text(answer, name)])


def fits_labelled(row: Row) -> bool:
    """A label next to prompt and completion, a whole conversation, or an instruction and its output; no pair."""
    if row.get("label") is None or not (is_absent(row.get("chosen")) or is_absent(row.get("rejected"))):
        return False
    if row.get("completion") is not None:
        return fits_text(row)
    return any(is_messages(row.get(name)) for name in ("messages", "conversations")) or _is_instruction(row)


def _is_instruction(row: Row) -> bool:
    return all(isinstance(peek(row, name), str) for name in ("instruction", "output"))


def labelled(row: Row, num_answers: int) -> Example:
    """A single answer and whether it is desirable."""
    is_instruction = num_answers == 1 and is_absent(peek(row, "completion")) and _is_instruction(row)
    example = alpaca(row, 1) if is_instruction else single(row, num_answers)
    return replace(example, label=label(row.get("label")))


LABELLED = Format("labelled", "single answers, each desirable or not", fits_labelled, labelled, data="labels", place=15)
TEXT = Format("text", "single answers", fits_text, single, data="answers", place=90)
