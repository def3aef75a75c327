"""Row layouts that people publish: how each is recognised, and the function that reads it.

Detection looks at the shape of the first good rows of a file and takes the layout that most of them fit; every
row of the file is then read that way. One row with token ids is enough for all to need them: text beside ids must never
be tokenised a second time without a word. To add a layout: a pair of functions in a `*_rows.py`, a line in `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from raydpo.data.bad_rows import BadRow, field_of, label, text
from raydpo.data.chat_rows import (
    alpaca,
    conversation_of,
    fits_alpaca,
    fits_conversational,
    fits_sharegpt,
    fits_ultrafeedback,
    message_pair,
    sharegpt,
    whole,
)
from raydpo.data.messages import Example, Row, is_messages, messages
from raydpo.data.plain_rows import fits_hh, fits_standard, hh, standard
from raydpo.data.scored_rows import fits_scored, scored
from raydpo.data.token_rows import fits_tokenized, tokenized


@dataclass(frozen=True)
class Format:
    """A layout: `fits` says whether a row has its shape, `convert(row, num_answers)` reads the row."""

    name: str
    title: str
    fits: Callable[[Row], bool]
    convert: Callable[[Row, int], Example]


def _fits_text(row: Row) -> bool:
    if is_messages(row.get("messages")) or is_messages(row.get("conversations")):
        return True
    if isinstance(row.get("completion"), str) or is_messages(row.get("completion")):
        return isinstance(row.get("prompt"), str) or is_messages(row.get("prompt"))
    return isinstance(row.get("text"), str) or isinstance(row.get("chosen"), str) or is_messages(row.get("chosen"))


def _text(row: Row, num_answers: int) -> Example:
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


def _fits_labelled(row: Row) -> bool:
    return row.get("label") is not None and row.get("completion") is not None and _fits_text(row)


def _labelled(row: Row, num_answers: int) -> Example:
    return replace(_text(row, num_answers), label=label(row.get("label")))


FORMATS: dict[str, Format] = {
    layout.name: layout
    for layout in (
        Format("tokenized", "token ids of pairs", fits_tokenized, tokenized),
        Format("hh", "transcripts of Human and Assistant", fits_hh, hh),
        Format("alpaca", "instructions with ranked answers", fits_alpaca, alpaca),
        Format("sharegpt", "conversations with ranked answers", fits_sharegpt, sharegpt),
        Format("scored", "lists of answers, best against worst", fits_scored, scored),
        Format("ultrafeedback", "message lists beside a prompt", fits_ultrafeedback, message_pair),
        Format("conversational", "message lists", fits_conversational, message_pair),
        Format("standard", "plain text", fits_standard, standard),
        Format("labelled", "single answers, each desirable or not", _fits_labelled, _labelled),
        Format("text", "single answers", _fits_text, _text),
    )
}
"""Every layout by its name in `data.format`. Detection asks in this order: the special before the general."""


def detect(rows: Sequence[Row]) -> str | None:
    """Name of the layout that most of `rows` fit (tokenized: any of them), or None when no row fits any."""
    if any(map(fits_tokenized, rows)):
        return "tokenized"
    votes = dict.fromkeys(FORMATS, 0)
    for row in rows:
        name = next((layout.name for layout in FORMATS.values() if layout.fits(row)), None)
        if name is not None:
            votes[name] += 1
    best = max(votes, key=lambda name: votes[name])
    return best if votes[best] else None
