"""What a column can stand for, in `data.columns`.

Decision: these are the names under which the layouts of rows look, so that a mapped column is read by whatever layout then
fits; a column that has one of these names already needs no mapping.
"""

from __future__ import annotations

from typing import Literal

Meaning = Literal[
    "prompt", "system", "messages", "chosen", "rejected", "completion", "label", "answers", "scores", "text", "tools"
]

MEANINGS: dict[Meaning, str] = {
    "prompt": "what is asked: text, or a list of messages",
    "system": "the system text, which becomes the first turn",
    "messages": "a conversation, whole or up to the answers",
    "chosen": "the better answer",
    "rejected": "the worse answer",
    "completion": "the one answer of a row that has one",
    "label": "whether that answer is desirable",
    "answers": "a list of answers",
    "scores": "a list of their scores, higher is better",
    "text": "a whole text",
    "tools": "descriptions of tools, for the chat template",
}
"""Meaning -> what it holds."""
