"""Row layouts that people publish, and the one that fits the rows of a file.

Detection looks at the shape of the first good rows of a file and takes the layout that most of them fit; a row that fits
another one is read by that. One row with token ids is enough for all to need them: text next to ids must never
be tokenised a second time without a word. To add a layout: a `Format` in a `*_rows.py`, a line in `raydpo.config.doors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from raydpo.config.doors import FORMATS as DOOR
from raydpo.config.outside import is_outside
from raydpo.data.bad_rows import BadRow
from raydpo.data.format import Format
from raydpo.data.messages import Example, Row
from raydpo.data.token_rows import fits_tokenized

__all__ = ["FORMATS", "Format", "detect", "format_named"]

FORMATS: dict[str, Format] = {
    layout.name: layout
    for layout in sorted((DOOR.resolve(name) for name, home in DOOR.ours.items() if home), key=lambda one: one.place)
}
"""Every layout of ours by its name in `data.format`. Detection asks in this order: the special before the general."""


def format_named(name: str) -> Format:
    """The layout `name`, ours or an outside one, which is called by its whole name. Raises ConfigError.

    A row over which an outside one raises, or of which it makes no example, is a bad row like any other.
    """
    if not is_outside(name):
        return FORMATS[name]
    layout: Format = DOOR.resolve(name)
    return Format(name, layout.title, layout.fits, partial(_checked, layout), layout.data)


def _checked(layout: Format, row: Row, num_answers: int) -> Example:
    try:
        example = layout.convert(row, num_answers)
    except BadRow:
        raise
    except Exception as error:
        raise BadRow("format_error", f"{type(error).__name__}: {error}") from error
    if not isinstance(example, Example):
        raise BadRow("format_error", f"it gave a {type(example).__name__} where an Example is allowed")
    found = len(example.answers if example.tokens is None else example.tokens.answers)
    if found != num_answers:
        raise BadRow("format_error", f"it gave {found} answers, and the objective reads {num_answers}")
    return example


def fitting(row: Row) -> Format | None:
    """The first layout of ours that a row fits."""
    return next((layout for layout in FORMATS.values() if layout.fits(row)), None)


def detect(rows: Sequence[Row]) -> str | None:
    """Name of the layout that most of `rows` fit (tokenized: any of them), or None when no row fits any."""
    if any(map(fits_tokenized, rows)):
        return "tokenized"
    votes = dict.fromkeys(FORMATS, 0)
    for row in rows:
        layout = fitting(row)
        if layout is not None:
            votes[layout.name] += 1
    best = max(votes, key=lambda name: votes[name])
    return best if votes[best] else None
