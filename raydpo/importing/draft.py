"""The run.yaml that is being made of another project's options, and the fate of each of them.

Comes in: options with their places, defaults of the project that decide numbers, and the table. Goes out: lines of
ours with their
origin, an account of every option, and all problems at once.
Decision: whoever reads an option says what became of it; one that nobody spoke of is unknown, and stops like one without a
counterpart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raydpo.importing.fates import Idle, Only, Row, To
from raydpo.importing.given_options import GivenOption, GivenOptions, Unresolved

MAPPED, SAME, IDLE, LOST, UNKNOWN, ALLOWED, YOURS = (
    "mapped",
    "same",
    "no effect on numbers",
    "without counterpart",
    "unknown",
    "allowed",
    "given on the command line",
)
_STOPPING = (LOST, UNKNOWN)


@dataclass(frozen=True)
class DraftLine:
    """A value of ours and the option that it is from."""

    value: Any
    origin: str


@dataclass(frozen=True)
class Fated:
    """What became of an option. text: its counterpart, or why there is none."""

    option: GivenOption
    fate: str
    text: str


class Draft:
    """lines: dotted key -> line. fates: option -> what became of it. differences: sentences on what is not quite theirs."""

    def __init__(
        self,
        given: GivenOptions,
        defaults: Mapping[str, Any],
        title: str,
        allowed: Sequence[str],
        yours: Mapping[str, Any],
    ) -> None:
        whose = f"default of {title}"
        named = {name: GivenOption(name, value, whose, is_default=True) for name, value in defaults.items()}
        set_here = {name: option for name, option in given.options.items() if option.value is not None}
        self.given, self.title = given, title
        self.options: dict[str, GivenOption] = {**named, **given.options, **set_here}
        for name, option in given.options.items():
            if option.value is None and name in named:
                self.options[name] = named[name]
        self.lines: dict[str, DraftLine] = {}
        self.fates: dict[str, Fated] = {}
        self.differences: list[str] = []
        self._allowed, self._yours = frozenset(allowed), dict(yours)

    def add_default(self, name: str, value: Any) -> None:
        """A default of theirs that counts only in some configs."""
        if name not in self.options or self.options[name].value is None:
            self.options[name] = GivenOption(name, value, f"default of {self.title}", is_default=True)

    def rename(self, old: str, new: str) -> None:
        """An option under the name that the table has for it."""
        option = self.options.pop(old)
        self.options[new] = GivenOption(new, option.value, option.where)

    def has(self, name: str) -> bool:
        """Whether it is written in their file."""
        return name in self.options and not self.options[name].is_default

    def get(self, name: str, otherwise: Any = None) -> Any:
        """The value of an option, of a default, or `otherwise`."""
        option = self.options.get(name)
        return otherwise if option is None or option.value is None else option.value

    def put(self, key: str, value: Any, *names: str, differs: str = "") -> None:
        """`key` of ours is `value`, because of the options `names`."""
        found = [self.options[name] for name in names if name in self.options]
        open_words = [option for option in found if _is_open(option.value)]
        if open_words and not self.is_yours(key):
            for option in found:
                self._say(
                    option, LOST, f"its value is not in the file; give {key}=VALUE, or --var NAME=VALUE of the script"
                )
            return
        origin = ", ".join(f"{option.shown} ({option.where})" for option in found) or self.given.where
        self.lines[key] = DraftLine(value, origin)
        for option in found:
            self._say(option, YOURS if self.is_yours(key) else MAPPED, key)
        if differs and differs not in self.differences:
            self.differences.append(differs)

    def note(self, key: str, value: Any, origin: str) -> None:
        """A line that no option of theirs is behind."""
        self.lines[key] = DraftLine(value, origin)

    def same(self, name: str, why: str = "as here") -> None:
        """We do the same without a key."""
        self._settle(name, SAME, why)

    def idle(self, name: str, why: str) -> None:
        """It changes no number."""
        self._settle(name, IDLE, why)

    def lose(self, name: str, why: str, instead: str = "") -> None:
        """It changes numbers, and has no counterpart; or the user gave `instead`."""
        if instead and self.is_yours(instead):
            self._settle(name, YOURS, instead)
        else:
            self._settle(name, LOST, why + (f"; {instead}=VALUE decides it" if instead else ""))

    def is_yours(self, key: str) -> bool:
        """Whether `key`, or something below it, is given on the command line."""
        return any(each == key or each.startswith(f"{key}.") for each in self._yours)

    def follow(self, table: Mapping[str, Row]) -> None:
        """Give every option that nobody spoke of yet the fate that the table has for it."""
        for name, option in list(self.options.items()):
            if name in self.fates:
                continue
            row = table.get(name)
            if row is None and name.startswith("no_") and name[3:] in table:
                row, option = table[name[3:]], GivenOption(name, False, option.where)
            self._by_row(name, option, row)

    def follow_one(self, name: str, row: Row) -> None:
        """Give one option the fate of `row`."""
        if name in self.options:
            self._by_row(name, self.options[name], row)

    def _by_row(self, name: str, option: GivenOption, row: Row | None) -> None:
        value = option.value
        if isinstance(row, Idle):
            self.idle(name, row.why)
        elif isinstance(row, Only):
            if any(
                value is each or (value == each and isinstance(value, bool) == isinstance(each, bool))
                for each in row.values
            ):
                self.same(name)
            else:
                self.lose(name, row.why, row.instead)
        elif isinstance(row, To):
            self._by_key(name, option, row)
        elif value is None:
            self.same(name, "not set")
        else:
            self._settle(name, UNKNOWN, f"no option of {self.title} that is known here; it may change numbers")

    def _by_key(self, name: str, option: GivenOption, row: To) -> None:
        if option.value is None:
            self.same(name, "not set")
            return
        try:
            value = option.value if row.convert is None or _is_open(option.value) else row.convert(option.value)
        except (ValueError, TypeError) as error:
            self.lose(name, str(error), row.key)
            return
        self.put(row.key, value, name, differs=row.differs)

    def _settle(self, name: str, fate: str, text: str) -> None:
        if name in self.options:
            self._say(self.options[name], fate, text)

    def _say(self, option: GivenOption, fate: str, text: str) -> None:
        if fate in _STOPPING and option.name in self._allowed:
            fate, text = ALLOWED, f"left out: {text}"
        before = self.fates.get(option.name)
        if before is not None and before.fate in _STOPPING:
            return
        if before is not None and before.fate == fate and text != before.text:
            text = f"{before.text}, {text}"
        self.fates[option.name] = Fated(option, fate, text)

    @property
    def problems(self) -> list[str]:
        """A sentence for every option that stops the import."""
        return [
            f"{each.option.where}: {each.option.shown}: {each.text}. Nothing was written. `--allow "
            f"{each.option.name}` leaves it out."
            for each in self.fates.values()
            if each.fate in _STOPPING
        ]


def _is_open(value: Any) -> bool:
    return isinstance(value, Unresolved) or (
        isinstance(value, list) and any(isinstance(each, Unresolved) for each in value)
    )
