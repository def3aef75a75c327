"""What one check of `raydpo doctor` found: one line, with how bad it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line.

    name: what was looked at.
    level: ok; warn, a run works and the text says what it lacks; fail, a run does not work or is not safe.
    text: what was found and, if it is not ok, what to do. Holds no secret.
    """

    name: str
    level: Level
    text: str
