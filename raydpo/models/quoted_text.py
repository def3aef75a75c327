"""Text of others inside a chat template: what it spells like a control token stays text.

Comes in: a tokenizer and what somebody wrote. Goes out: the same text, with a word joiner, which nobody sees, behind the first
character of every control token in it. Decision: the text is changed, not the tokens, because a template gives one string
in which its own control tokens have to be read. Price: a model that judges sees one character more, and only there.
"""

from __future__ import annotations

import re
from typing import Any

_JOINER = "\N{WORD JOINER}"
_SHAPED = re.compile("<[|\uff5c].*[|\uff5c]>", re.DOTALL)


def quoted(tokenizer: Any, text: str) -> str:
    """`text` without control tokens of `tokenizer`: its special tokens, and added ones of the form <|name|>."""
    added = tokenizer.added_tokens_decoder.values()
    control = [str(token) for token in added if token.special or _SHAPED.fullmatch(str(token))]
    names = {name for name in (*control, *map(str, tokenizer.all_special_tokens)) if len(name) > 1 and name in text}
    for name in sorted(names, key=len, reverse=True):
        text = text.replace(name, name[0] + _JOINER + name[1:])
    return text
