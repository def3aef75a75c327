"""What a layout of rows is: how it is recognised, and the function that reads it. The door `data.format`.

Ours stand at the end of a `*_rows.py` each, and in `raydpo.config.doors`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from raydpo.data.messages import Example, Row


@dataclass(frozen=True)
class Format:
    """A layout of rows.

    name: as in `data.format`.
    title: for people.
    fits: whether a row has its shape.
    convert: (row, num_answers) -> example; raises `BadRow` with the reason why the row cannot be used.
    data: what a row holds: a pair, an answer with its label, or an answer.
    place: in the order in which ours are asked whether a row fits, the special before the general; a format that is
        named is not asked.
    """

    name: str
    title: str
    fits: Callable[[Row], bool]
    convert: Callable[[Row, int], Example]
    data: Literal["pairs", "labels", "answers"] = "pairs"
    place: int = 0
