"""Control tokens that stand for an image, video or sound: the model reads one where something to see or hear comes in.

What comes in: texts of a row, and the control tokens of the tokenizer. What goes out: BadRow where a text holds such a token.
Decision: a token is one of media by its name, since tokenizers do not say what their tokens are for. Price: a text that only
talks about such a token of this very tokenizer is left out; with a tokenizer that lacks it, it is text like any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from raydpo.data.bad_rows import BadRow

_NAME = re.compile(r"(?<![a-z])(?:image|img|video|vision|audio|speech|sound|media)(?![a-z])", re.IGNORECASE)


def refuse_media_tokens(texts: Iterable[str], control_tokens: Sequence[str]) -> None:
    """BadRow (unsupported_media) when one of `texts` spells out a token of `control_tokens` that stands for media."""
    marks = [token for token in control_tokens if _NAME.search(token)]
    found = next((mark for text in texts for mark in marks if mark in text), None)
    if found is not None:
        raise BadRow(
            "unsupported_media",
            f"the text holds {found[:40]}, which this tokenizer has for something to see or hear; only text can be trained",
        )
