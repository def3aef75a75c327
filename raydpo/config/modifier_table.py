"""Modifiers: options that any objective of a kind reads, written once. Torch-free, like the table of objectives.

In: a row of the table. Out: the modifiers that it reads, with bounds and defaults. `raydpo.objectives.modifiers` does
what they say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from raydpo.config.objective_row import Flag, ObjectiveRow, Parameter


@dataclass(frozen=True)
class Modifier:
    """An option that many objectives have.

    value: bounds and default.
    reads: whether an objective reads it.
    readers: the same in words.
    paper: arXiv id.
    """

    value: Parameter | Flag
    reads: Callable[[ObjectiveRow], bool]
    readers: str
    paper: str = ""


def _ratio_sums(row: ObjectiveRow) -> bool:
    return row.data == "pairs" and row.needs_reference and row.reads == "sums"


MODIFIERS: dict[str, Modifier] = {
    "weight": Modifier(
        Parameter(1.0, 0.0, 1e4, "factor of this term in the loss", low_open=True),
        lambda row: True,
        "every objective",
    ),
    "ld_alpha": Modifier(
        Parameter(
            1.0, 0.0, 1.0, "weight of the answer tokens beyond the length of the shorter answer; 1: LD-DPO is off"
        ),
        _ratio_sums,
        "objectives on pairs that read sums of log-ratios",
        "2409.06411",
    ),
    "length_normalized": Modifier(
        Flag("log-ratios are divided by the tokens of their answer; beta is then per mean token"),
        lambda row: _ratio_sums(row) and row.batch == "none",
        "objectives on pairs that read sums of log-ratios, but aot and aot_unpaired",
    ),
    "wpo": Modifier(
        Flag("the loss of a pair is weighted by how likely the policy itself is to write its two answers"),
        lambda row: row.data == "pairs" and row.batch == "none",
        "objectives on pairs, but aot and aot_unpaired",
        "2406.11827",
    ),
}


def modifiers_of(row: ObjectiveRow) -> dict[str, Parameter | Flag]:
    """Name -> bounds and default of every modifier that `row` reads, `weight` first."""
    return {name: modifier.value for name, modifier in MODIFIERS.items() if modifier.reads(row)}
