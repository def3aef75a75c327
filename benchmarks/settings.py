"""Which objectives are compared, what each needs in addition to its defaults, and what a reader should know of its result.

In: the table of objectives. Out: settings over those of the quickstart, and notes for the page.
Decision: every objective runs at its documented default and at the quickstart's learning rate. What departs from that
stands here with its reason and is printed on the page; the price is that a new objective may need a line here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raydpo.config import OBJECTIVES
from raydpo.quickstart.offline_dpo import SHAPE


@dataclass(frozen=True)
class Override:
    """settings: section -> key -> value, over those of the quickstart's alignment. reason: why; goes onto the page."""

    reason: str
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


_AS_LABELS = Override(
    "Each pair is read as a desirable and an undesirable answer; a batch of 128 answers is one of 64 pairs.",
    {"data": {"unpair": True}, "train": {"global_batch_pairs": 128}},
)
OVERRIDES: dict[str, Override] = {name: _AS_LABELS for name, row in OBJECTIVES.items() if row.data == "labels"}
"""Objective -> what it needs over the quickstart's settings."""

START: dict[str, Any] = {**SHAPE, "num_heads": 4}
"""The model that every comparison starts from: that of the quickstart with four heads of 40 numbers, as it was when most of
them were made."""

CONTROL = "sft"
"""What it takes no preferences for: the same steps on the chosen answers alone."""

NOTES: dict[str, str] = {
    "apo_down": "Pushes the rejected answer down and leaves the chosen one alone at first; here that one rises by itself.",
    "discopop": "The paper's own function: at its defaults the loss rises with the margin from -2.37 to 1.44 nats, so "
    "training from margin 0 goes down to -2.37, against the label. It falls at margin 0 for `tau` above "
    "(1 - ln 2) / 3 = 0.102: with `tau` 0.3 the same run reached 99.2%. The paper trained on long answers, whose margins "
    "move by more nats than this stretch is wide.",
    CONTROL: "For comparison: the chosen answers alone, no preferences. Where the loss has a likelihood term (`orpo`, `cpo`, "
    "`slic`), exact match does not say what the preferences add to it.",
}
"""Objective -> why its numbers are what they are, where the table alone would mislead."""


def compared() -> list[str]:
    """Objectives that can learn from the quickstart's pairs, and the control, in the order of the table."""
    return [name for name, row in OBJECTIVES.items() if row.data != "answers" or name == CONTROL]


def settings_of(name: str) -> Mapping[str, Mapping[str, Any]]:
    """What `name` needs over the quickstart's settings; empty for most."""
    return OVERRIDES[name].settings if name in OVERRIDES else {}
