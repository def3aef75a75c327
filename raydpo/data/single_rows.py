"""Rows of single answers: with a label, or alone.

Decision: a row of a pair that is read for one answer gives the chosen one, so the same files serve sft and nll.
"""

from __future__ import annotations

from dataclasses import replace

from raydpo.data.bad_rows import BadRow, field_of, label, text
from raydpo.data.chat_rows import conversation_of, whole
from raydpo.data.format import Format
from raydpo.data.messages import Example, Row, is_messages, messages


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
    """prompt, completion and label."""
    return row.get("label") is not None and row.get("completion") is not None and fits_text(row)


def labelled(row: Row, num_answers: int) -> Example:
    """A single answer and whether it is desirable."""
    return replace(single(row, num_answers), label=label(row.get("label")))


LABELLED = Format("labelled", "single answers, each desirable or not", fits_labelled, labelled, data="labels", place=80)
TEXT = Format("text", "single answers", fits_text, single, data="answers", place=90)
