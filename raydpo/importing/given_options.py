"""What a file of another project says: options with the place where each is written, and how the program is started.

Comes in: values from YAML, JSON, TOML, a command line or a call in Python. Goes out: `GivenOptions`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class Unresolved(str):
    """Text of a shell word whose variable or command has no value in the file."""


@dataclass(frozen=True)
class GivenOption:
    """An option of theirs. where: "file:3", or whose default it is."""

    name: str
    value: Any
    where: str
    is_default: bool = False

    @property
    def shown(self) -> str:
        """As `name: value`, cut for a line of a table."""
        text = f"{self.value}" if isinstance(self.value, str) else repr(self.value)
        return f"{self.name}: {text if len(text) <= 60 else text[:57] + '...'}"


@dataclass(frozen=True)
class GivenOptions:
    """options: by name, dashes as underscores. num_processes: by the launcher, None where nothing says so. program: the words
    that name the script. where: file and line at which the options begin. launcher: other words before the script."""

    options: Mapping[str, GivenOption]
    where: str
    program: str = ""
    num_processes: int | None = None
    launcher: Mapping[str, str] = field(default_factory=dict)


def option_name(word: str) -> str:
    """`--learning-rate` as `learning_rate`; dots stay."""
    return word.lstrip("-").replace("-", "_")
