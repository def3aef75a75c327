"""Ids of a run's tokenizer as the texts that they stand for, one for each.

Comes in: a run's directory and its config. Goes out: texts. Decision: tokenizer.json is read without transformers, which takes
longer to import than a report takes to make; where there is none, ids are shown as numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

MOST_TOKENS = 160
"""Of an answer that are shown."""


class TokenTexts:
    """place: file of the tokenizer; None: there is none."""

    def __init__(self, place: Path | None) -> None:
        self._tokenizer: Any = None
        if place is not None:
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_file(str(place))
        self.of = lru_cache(maxsize=65536)(self._of)

    @classmethod
    def of_run(cls, folder: Path, config: Mapping[str, Any]) -> TokenTexts:
        """The tokenizer that a run published, or that of the model it started from."""
        start = Path(str(config.get("model", {}).get("path", "")))
        for place in (folder / "model", folder / "model_merged", start):
            if (place / "tokenizer.json").is_file():
                return cls(place / "tokenizer.json")
        return cls(None)

    def _of(self, token: int) -> str:
        """The text of one id as it stands within a text."""
        if self._tokenizer is None:
            return f"{token} "
        before = self._tokenizer.encode("x", add_special_tokens=False).ids
        start = self._tokenizer.decode(before, skip_special_tokens=False)
        text: str = self._tokenizer.decode([*before, token], skip_special_tokens=False)[len(start) :]
        return text if text and "\ufffd" not in text else str(self._tokenizer.id_to_token(token))

    def text(self, ids: Sequence[int]) -> str:
        """Of many ids, together."""
        if self._tokenizer is None:
            return " ".join(map(str, ids))
        found: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return found
