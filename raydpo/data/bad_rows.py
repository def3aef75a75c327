"""Why a line cannot be used: the reasons, and the checks that need no tokenizer.

What comes in: fields of one parsed row. What goes out: the same values, or `BadRow` with one of `REASONS`.
Decision: a row has exactly one reason, the first that is met in a fixed order, so that lines read equal lines used
plus the sum over reasons. Price: a row that is bad in two ways is counted once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

REASONS: dict[str, str] = {
    "malformed_json": "not valid JSON",
    "too_large": "one line or row of more bytes than are read (64 MiB)",
    "malformed_csv": "more or fewer cells than the header names",
    "duplicate_key": "an object names a key twice",
    "not_an_object": "valid JSON, but not an object",
    "invalid_utf8": "bytes that are not UTF-8",
    "lone_surrogate": "half of a UTF-16 surrogate pair, which no tokenizer can read",
    "nul": "a NUL character",
    "not_a_value": "a cell without a value that can be written down, such as a date beyond the year 9999",
    "unknown_format": "no known row layout fits the file",
    "missing_field": "a field that the format needs is absent or null",
    "not_a_string": "a field that must be text is something else",
    "not_a_number": "a score, confidence or weight is not a finite number",
    "negative_weight": "a weight is below 0",
    "not_a_label": "a label is neither true nor false (nor 1 or 0)",
    "too_few_answers": "fewer than two answers to compare",
    "length_mismatch": "not as many scores as answers",
    "unknown_role": "a message has a role other than system, developer, user, assistant, tool",
    "no_assistant_turn": "there is no assistant turn where the answer should be",
    "bad_turn_order": "turns stand where they cannot: an answer begins and ends with the assistant",
    "bad_ids": "token ids are not a list of whole numbers in the vocabulary",
    "bad_mask": "an answer mask is not one 0 or 1 for each token of its answer",
    "split_token": "one token holds text of the assistant and of somebody else",
    "empty_prompt": "no prompt, and no BOS to start from",
    "empty_answer": "an answer without text",
    "identical_answers": "chosen and rejected are the same",
    "differing_prompts": "chosen and rejected answer different prompts",
    "control_tokens": "control tokens inside the text that may not or cannot be read as plain text",
    "template_error": "the chat template refuses the conversation",
    "template_limits": "the chat template takes more time or memory for the conversation than any should",
    "template_dropped": "the chat template leaves out something that the row says",
    "prefix_mismatch": "the prompt is not the beginning of prompt + answer after the chat template or tokenizer",
    "two_systems": "a system text next to a conversation that begins with another one",
    "no_place_for_system": "a system text next to token ids, a transcript or a text without a prompt",
    "unsupported_media": "images, video or sound, which are not supported",
    "format_error": "the format, of another package, could not read the row",
    "blank_line": "nothing but white space",
    "overlong": "longer than data.max_length",
    "low_confidence": "confidence below data.min_confidence",
    "tied_scores": "best and worst answer have the same score",
    "undesirable": "an undesirable answer, which sft and nll do not imitate",
}
"""Every reason for leaving a line out, with its meaning. Order of the table on the screen."""

APART = frozenset({"blank_line", "overlong", "low_confidence", "tied_scores", "undesirable"})
"""Reasons that say nothing about broken data: counted, but not against `data.max_bad_fraction`."""

LARGEST_WEIGHT = 1e6
"""Beyond it a loss in float32 is soon infinite, and the learning rate would be blamed."""

_SURROGATE = re.compile("[\ud800-\udfff]")


class BadRow(Exception):
    """One row cannot be used. Never leaves this package: it becomes a line of quarantine.jsonl."""

    def __init__(self, reason: str, detail: str) -> None:
        assert reason in REASONS, reason
        # Half surrogates of the data would make the message itself unwritable.
        self.reason, self.detail = reason, detail.encode("utf-8", "backslashreplace").decode()
        super().__init__(self.reason, self.detail)


def field_of(row: Mapping[str, Any], name: str) -> Any:
    """The value under `name`; absent and null are the same (in columnar files there is no difference)."""
    value = row.get(name)
    if value is None:
        raise BadRow("missing_field", f"{name} is missing")
    return value


def text(value: Any, name: str) -> str:
    """`value` as text that a tokenizer can read. BadRow: missing_field, not_a_string, lone_surrogate, nul."""
    if value is None:
        raise BadRow("missing_field", f"{name} is missing")
    if not isinstance(value, str):
        raise BadRow("not_a_string", f"{name} is {type(value).__name__}, not text")
    if _SURROGATE.search(value):
        raise BadRow("lone_surrogate", f"{name} holds half of a surrogate pair")
    if "\0" in value:
        raise BadRow("nul", f"{name} holds a NUL character")
    return value


def number(value: Any, name: str) -> float:
    """`value` as a finite float; numbers written as text count. BadRow: missing_field, not_a_number."""
    if value is None:
        raise BadRow("missing_field", f"{name} is missing")
    if not isinstance(value, bool) and isinstance(value, int | float | str):
        try:
            result = float(value)
        except (ValueError, OverflowError):
            result = math.nan
        if math.isfinite(result):
            return result
    raise BadRow("not_a_number", f"{name} is {str(value)[:40]!r}, not a finite number")


def column_number(row: Mapping[str, Any], column: str) -> float:
    """The number under `column`; dots reach into nested fields. BadRow: missing_field, not_a_number."""
    value: Any = row
    for part in (column,) if column in row else column.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return number(value, column)


def confidence(row: Mapping[str, Any], column: str, least: float) -> None:
    """Refuse a row whose `column` is below `least`."""
    found = column_number(row, column)
    if found < least:
        raise BadRow("low_confidence", f"{column} is {found:g}, below {least:g}")


def weight(row: Mapping[str, Any], column: str) -> float:
    """The weight of a row. BadRow: missing_field, not_a_number, negative_weight."""
    found = column_number(row, column)
    if found < 0:
        raise BadRow("negative_weight", f"{column} is {found:g}")
    if found > LARGEST_WEIGHT:
        raise BadRow("not_a_number", f"{column} is {found:g}, more than a weight can be ({LARGEST_WEIGHT:g})")
    return found


def label(value: Any) -> bool:
    """`value` as a label: true or false, or 1 or 0, also as text. BadRow: missing_field, not_a_label."""
    if value is None:
        raise BadRow("missing_field", "label is missing")
    if isinstance(value, str):
        value = {"true": 1, "1": 1, "1.0": 1, "false": 0, "0": 0, "0.0": 0}.get(value.strip().lower(), value)
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        raise BadRow("not_a_label", f"label is {str(value)[:40]!r}")
    return bool(value)


def answer_texts(answers: list[str]) -> None:
    """Refuse empty answers, and a pair of equal ones."""
    for side, answer in zip(("chosen", "rejected"), answers, strict=False):
        if not answer.strip():
            raise BadRow("empty_answer", f"the {side} answer has no text" if len(answers) > 1 else "answer has no text")
    if len(answers) > 1 and answers[0] == answers[1]:
        raise BadRow("identical_answers", "chosen and rejected are the same text")
