"""What may become of an option of another project: the rows of the tables.

Decision: a row is data; only what several options decide together (loss, batch, schedule, adapter) is code, and its
options have
the row `TOGETHER`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class To:
    """It is `key` of ours. convert: of the value; ValueError for one that has no counterpart. differs: how ours is not quite
    theirs, as a sentence."""

    key: str
    convert: Callable[[Any], Any] | None = None
    differs: str = ""


@dataclass(frozen=True)
class Idle:
    """It changes no number of the training. why: what it is for."""

    why: str


@dataclass(frozen=True)
class Only:
    """Of these values alone we do the same. why: what another would change. instead: the key of ours that decides it, which
    settles it where it is given on the command line."""

    values: tuple[Any, ...]
    why: str
    instead: str = ""


@dataclass(frozen=True)
class Together:
    """It is read with others by the code of its project."""


Row = To | Idle | Only | Together
TOGETHER = Together()
OFF = (None, False, 0, 0.0, "", "no", "none", "None", ())
"""Values of an option that is not used."""


def idle(why: str, names: str) -> dict[str, Row]:
    """Rows of options with one purpose."""
    return {name: Idle(why) for name in names.split()}


def off(why: str, names: str, instead: str = "") -> dict[str, Row]:
    """Rows of options that have no counterpart, unless they are off."""
    return {name: Only(OFF, why, instead) for name in names.split()}


def together(names: str) -> dict[str, Row]:
    """Rows of options that are read together."""
    return dict.fromkeys(names.split(), TOGETHER)


def whole_steps(value: Any) -> int:
    """A number of steps. ValueError for a share of the run."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 1:
        raise ValueError(f"{value!r} is no whole number of steps")
    return int(value)


def flag(value: Any) -> bool:
    """true, "true" and 1 alike."""
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if value in (None, True, False, 0, 1):
        return bool(value)
    raise ValueError(f"{value!r} is neither true nor false")


def number(value: Any) -> float:
    """A number, whatever it is written as."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is no number")
    found = float(value)
    return int(found) if found == int(found) and isinstance(value, int) else found


def names(value: Any) -> list[str]:
    """A list of names: one, several, or several with commas between them."""
    texts = value if isinstance(value, list | tuple) else str(value).split(",")
    return [str(text).strip().strip(",") for text in texts if str(text).strip(" ,")]
