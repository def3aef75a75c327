"""Rows as tokens on a terminal: each token with its id, and which of them the loss covers.

In: rows as `raydpo.data.shown_rows` makes them, as plain values. Out: text, at most 100 columns wide.
Decision: what has loss stands under its own label, and not in colour alone, so that it can be read in a file, too.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from raydpo.screen import printable

WIDTH = 100
_INDENT = 12


def print_rows(rows: Sequence[Mapping[str, Any]], stream: TextIO) -> None:
    """Write `rows` to `stream`, coloured where it is a terminal."""
    console = Console(file=stream, highlight=False, soft_wrap=True)
    width = min(WIDTH, console.width)
    for row in rows:
        for line in row_lines(row, width, console.encoding):
            console.print(line)


def row_lines(row: Mapping[str, Any], width: int, encoding: str = "utf-8") -> Iterator[Text]:
    """The lines of one row, none wider than `width` columns but where a single token is."""
    yield Text(printable(f"{row['split']}  {row['place']}", encoding), style="bold")
    for part in row["parts"]:
        number = sum(part["has_loss"])
        count = f"{len(part['ids']):,} tokens, {number:,} with loss"
        yield Text(f"  {part['name']:<{_INDENT - 2}}{count}", style="cyan")
        tokens = zip(part["ids"], part["tokens"], part["has_loss"], strict=True)
        for has_loss, run in itertools.groupby(tokens, key=lambda one: one[2]):
            label = "loss" if has_loss else "no loss"
            for line in _wrapped([(one, text) for one, text, _ in run], has_loss, width, encoding):
                yield Text(f"    {label:<{_INDENT - 4}}") + line
                label = ""
        if part["compared"]:
            said = printable(part["compared"], encoding)
            style = "green" if said.startswith("equal") else "yellow"
            for words in textwrap.wrap(said, width - _INDENT):
                yield Text(" " * _INDENT + words, style=style)
    yield Text("")


def _wrapped(tokens: Sequence[tuple[int, str]], has_loss: bool, width: int, encoding: str) -> Iterator[Text]:
    line = Text()
    for token, text in tokens:
        chip = Text(printable(_visible(text), encoding), style="bold green" if has_loss else "")
        chip.append(printable(f"⟨{token}⟩", encoding), style="dim")
        if line and _INDENT + line.cell_len + 1 + cell_len(chip.plain) > width:
            yield line
            line = Text()
        line = line + (" " if line else "") + chip
    if line:
        yield line


def _visible(text: str) -> str:
    """White space that can be seen."""
    return text.replace(" ", "␣").replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
