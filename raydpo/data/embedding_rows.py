"""Token ids against the rows of the embedding that is to read them: a tokenizer may have grown beyond its model.

Comes in: examples in token ids, with their places. Goes out: one sentence for all that cannot be read, or a note on tokens
that have no row and do not occur. Decision: only what occurs stops a run; many published tokenizers name more tokens than
their models have rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raydpo.data.encode import Encoded
from raydpo.data.tokenizer import TextTokenizer
from raydpo.errors import DataError


@dataclass(frozen=True)
class Embedding:
    """key: what in the config names the model. num_rows: of its embedding; ids from there on have none."""

    key: str
    num_rows: int


def smallest(found: list[tuple[str, int | None]]) -> Embedding | None:
    """The model with the fewest rows of (key, rows or None where they are not known)."""
    known = [Embedding(key, rows) for key, rows in found if rows is not None]
    return min(known, key=lambda one: one.num_rows, default=None)


@dataclass
class Beyond:
    """What of the data `embedding` has no row for. is_needed: whether the tokenizer has such ids at all."""

    tokenizer: TextTokenizer
    embedding: Embedding | None
    num_examples: int = 0
    first: str = ""
    tokens: dict[int, str] = field(default_factory=dict)

    @property
    def num_rows(self) -> int | None:
        return None if self.embedding is None else self.embedding.num_rows

    @property
    def is_needed(self) -> bool:
        return self.embedding is not None and self.tokenizer.num_ids > self.embedding.num_rows

    def look(self, place: str, example: Encoded) -> None:
        """Note what `example`, read at `place`, has beyond the embedding."""
        if not self.is_needed:
            return
        assert self.embedding is not None
        ids = {
            one for part in (example.prompt_ids, *example.answer_ids) for one in part if one >= self.embedding.num_rows
        }
        if ids:
            self.num_examples += 1
            self.first = self.first or place
            self.tokens |= {one: self.tokenizer.decode([one]) for one in ids - self.tokens.keys()}

    def to_json(self) -> dict[str, Any]:
        """What was noted, as plain values."""
        tokens = [[one, text] for one, text in self.tokens.items()]
        return {"num_examples": self.num_examples, "first": self.first, "tokens": tokens}

    def absorb(self, noted: Mapping[str, Any]) -> None:
        """Take in what `to_json` gave of later examples."""
        self.num_examples += noted["num_examples"]
        self.first = self.first or noted["first"]
        self.tokens |= {one: text for one, text in noted["tokens"] if one not in self.tokens}

    def refuse(self) -> None:
        """Raise DataError when something was noted."""
        if not self.tokens:
            return
        assert self.embedding is not None
        rows, key = self.embedding.num_rows, self.embedding.key
        named = sorted(self.tokens.items())
        shown = ", ".join(f"{text!r} (id {one})" for one, text in named[:3]) + ", ..." * (len(named) > 3)
        raise DataError(
            f"{self.first}: token {shown} is beyond the embedding of {key}, which has {rows:,} rows (ids 0 to {rows - 1}: "
            f"vocab_size of its config.json); rows of the data with such tokens: {self.num_examples:,}. The first forward over "
            "them would have failed in a worker. Train with the checkpoint whose embedding was resized for this tokenizer "
            "(resize_token_embeddings), or take these tokens out of the rows or the tokenizer."
        )

    def note(self) -> str:
        """What to say of tokens without a row that do not occur; empty where there are none."""
        if not self.is_needed or self.tokens:
            return ""
        assert self.embedding is not None
        rows, last = self.embedding.num_rows, self.tokenizer.num_ids - 1
        return (
            f"the tokenizer has ids up to {last}, and the embedding of {self.embedding.key} has {rows:,} rows; none of the "
            "ids beyond occurs in the data"
        )
