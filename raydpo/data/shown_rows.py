"""The first used rows of each split as tokens, and where they differ from what the tokenizer itself makes of the row.

What comes in: rows on their way into a preparation, with their text and ids. What goes out: `ShownRow`s.
Decision: the comparison is with the library's own apply_chat_template of the whole conversation (for plain text, with the
tokenizer called on prompt and answer), which shares no line with how rows are encoded here.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from raydpo.data.encode import Encoded
from raydpo.data.messages import Example
from raydpo.data.plain_rows import sides_of
from raydpo.data.row_ends import num_leading
from raydpo.data.template import Rendered
from raydpo.data.tokenizer import TextTokenizer

_TEMPLATE, _CALL = "apply_chat_template", "the tokenizer's own call"
_FEW = 6
_DAY = datetime.date(2024, 7, 26)


@dataclass(frozen=True)
class ShownPart:
    """A prompt or an answer. tokens: text of each of its `ids`. has_loss: which of them are trained on.

    compared: what differs from the tokenizer's own reading, in words; empty for a prompt.
    """

    name: str
    ids: list[int]
    tokens: list[str]
    has_loss: list[bool]
    compared: str = ""


@dataclass(frozen=True)
class ShownRow:
    """split: train or eval. place: file and line. parts: the prompt, then the answers."""

    split: str
    place: str
    parts: list[ShownPart]

    def to_json(self) -> dict[str, Any]:
        """Nested plain values."""
        return asdict(self)


class RowViewer:
    """Keeps the first `num_rows` rows of each split that it is shown."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._counts: Counter[str] = Counter()
        self.rows: list[ShownRow] = []

    def restart(self) -> None:
        """Forget everything: the data are read from the beginning again."""
        self._counts.clear()
        self.rows.clear()

    def look(
        self, split: str, place: str, tokenizer: TextTokenizer, example: Example, text: Rendered, row: Encoded
    ) -> None:
        """A used row. example, text: what `row` was encoded from."""
        if self._counts[split] >= self._num_rows:
            return
        self._counts[split] += 1
        names = sides_of(len(row.answer_ids)) if len(row.answer_ids) > 1 else ["answer"]
        parts = [_part(tokenizer, "prompt", row.prompt_ids, [False] * len(row.prompt_ids), "")]
        for index, (name, ids, mask) in enumerate(zip(names, row.answer_ids, row.masks, strict=True)):
            said = _compared(tokenizer, example, text, row, index)
            parts.append(_part(tokenizer, name, ids, mask or [True] * len(ids), said))
        self.rows.append(ShownRow(split, place, parts))


def _part(tokenizer: TextTokenizer, name: str, ids: Sequence[int], has_loss: list[bool], compared: str) -> ShownPart:
    return ShownPart(name, list(ids), [_spelled(tokenizer, one) for one in ids], has_loss, compared)


def _spelled(tokenizer: TextTokenizer, token: int) -> str:
    """The text of a token as it stands within a text; a part of a letter as the vocabulary spells it."""
    before = tokenizer.encode(["x"])[0]
    text = tokenizer.decode([*before, token])[len(tokenizer.decode(before)) :]
    if text and "\ufffd" not in text:
        return text
    return str(tokenizer.tokenizer.convert_ids_to_tokens(token))


def _compared(tokenizer: TextTokenizer, example: Example, text: Rendered, row: Encoded, index: int) -> str:
    """What differs from the tokenizer's own ids of prompt and answer `index`, and why."""
    from jinja2 import TemplateError

    if text.tokens is not None:
        return "not compared: the token ids came with the row"
    name = _TEMPLATE if text.templated else _CALL
    try:
        theirs = _theirs(tokenizer, example, text, index)
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        return f"not compared: {name} fails: {(str(error) or repr(error)).splitlines()[0][:200]}"
    ours = [*row.prompt_ids, *row.answer_ids[index]]
    if text.templated and "strftime_now" in str(tokenizer.tokenizer.chat_template):
        name += f" on {_DAY.day} {_DAY:%B %Y}, the day that templates are told here"
    if ours == theirs:
        return f"equal to {name}"
    if row.truncated:
        return f"differs from {name}: the prompt is cut to data.max_length ({len(theirs):,} tokens without the cut)"
    found = _beginning(tokenizer, ours, theirs)
    start = num_leading(tokenizer.bos_id, ours)
    found += _rest(tokenizer, ours, [*ours[:start], *theirs[num_leading(tokenizer.bos_id, theirs) :]], text, row)
    return f"differs from {name}: {'; '.join(found)}"


def _theirs(tokenizer: TextTokenizer, example: Example, text: Rendered, index: int) -> list[int]:
    library = tokenizer.tokenizer
    if not text.templated:
        return list(library(text.prompt + text.answers[index])["input_ids"])
    turns = [*example.prompt, *example.answers[index]]
    found = library.apply_chat_template(
        turns,
        tools=example.tools,
        **example.template_settings,
        tokenize=True,
        add_generation_prompt=False,
        return_dict=False,
        strftime_now=_DAY.strftime,
    )
    return list(found)


def _beginning(tokenizer: TextTokenizer, ours: list[int], theirs: list[int]) -> list[str]:
    bos = tokenizer.bos_id
    numbers = [num_leading(bos, ids) for ids in (ours, theirs)]
    if bos is None or numbers[0] == numbers[1]:
        return []
    setting = tokenizer.ends.bos
    why = (
        f"data.bos is {setting}"
        if setting != "auto"
        else "an empty prompt needs one"
        if numbers[0]
        else "one is enough"
    )
    return [f"it begins with {numbers[0]} BOS here and with {numbers[1]} there ({why})"]


def _rest(tokenizer: TextTokenizer, ours: list[int], theirs: list[int], text: Rendered, row: Encoded) -> list[str]:
    """theirs: behind as many BOS as `ours` have."""
    place = next((p for p, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
    if place is None and len(ours) == len(theirs):
        return []
    end = _shown(tokenizer, ours[-1:])
    if place is None and len(ours) < len(theirs):
        return [f"{_shown(tokenizer, theirs[len(ours) :])} behind the end {end} is cut"]
    if place is None:
        who = "the template" if text.templated else "the tokenizer"
        return [f"{_shown(tokenizer, ours[len(theirs) :])} is put behind it, since {who} writes no end"]
    return [
        f"token {place} is {_shown(tokenizer, ours[place : place + 1])} here and "
        f"{_shown(tokenizer, theirs[place : place + 1])} there ({_why(tokenizer, ours, text, row, place)})"
    ]


def _why(tokenizer: TextTokenizer, ours: list[int], text: Rendered, row: Encoded, place: int) -> str:
    """What is known to make ids differ."""
    if place == len(ours) - 1:
        return "the end of the answer"
    reasons = []
    if text.plain:
        reasons.append("control tokens in the text are read as plain text")
    if row.merged:
        reasons.append("prompt and answer are tokenised apart where a token would join them")
    return ", or ".join(reasons) or "for no known reason: please report it"


def _shown(tokenizer: TextTokenizer, ids: Sequence[int]) -> str:
    few = "".join(_spelled(tokenizer, one) for one in ids[:_FEW])
    return repr(few) + (f" and {len(ids) - _FEW} tokens more" if len(ids) > _FEW else "")
