"""The account of an import for people: every option with its fate, in a table.

Comes in: what came of an import. Goes out: lines of text, and plain values for --json.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from raydpo.importing.conversion import SHOWN, Imported

_MOST_WIDTH = 48


def lines(found: Imported) -> list[str]:
    """Counts, one line an option, then what is not quite theirs."""
    counts = Counter(each.fate for each in found.fates)
    told = [f"{found.project}: {', '.join(f'{counts[fate]} {fate}' for fate in SHOWN if counts[fate])}"]
    width = min(_MOST_WIDTH, max((len(each.option.shown) for each in found.fates), default=0))
    for fate in SHOWN:
        these = [each for each in found.fates if each.fate == fate]
        if these:
            told.append(f"\n{fate}")
        told += [f"  {each.option.shown:<{width}}  {each.text}" for each in these]
    if found.differences:
        told.append("\nnot quite theirs")
        told += [f"  {text}" for text in found.differences]
    return told


def as_json(found: Imported) -> dict[str, Any]:
    """The config and the account."""
    options = [
        {
            "option": each.option.name,
            "value": each.option.value,
            "where": each.option.where,
            "fate": each.fate,
            "text": each.text,
        }
        for each in found.fates
    ]
    return {
        "project": found.project,
        "config": found.values,
        "options": options,
        "differences": list(found.differences),
    }
