"""Which columns of a source were read, which were not, and which of those must stop the run.

Comes in: each row that was used, with the columns that were read of it. Goes out: names for the report and the log, and a
sentence for a source whose unread columns have names that mean something.
Decision: what is counted is a column with a value, row by row, so that a file where only some rows have a column is judged
by these; a column that repeats what the example says is not lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from raydpo.config.sections import DataSection
from raydpo.data.column_names import ColumnKind, kind_of_column
from raydpo.data.messages import Example, Row
from raydpo.data.row_extras import contradicts, is_said, texts_of
from raydpo.data.row_view import RowView, dig, is_absent

_FEWEST_WORDS = 3
_OF_PROMPTS = ("prompt", "system", "messages", "tools")
_UNKNOWN = ColumnKind("text, where the answers share no beginning that could be the prompt", (), "", meaning="prompt")


class ColumnUse:
    """Columns of one source. unread: column -> rows in which it held something that was not read. contradicted: pairs whose
    ratings say the opposite. mapped: meanings of data.columns that some row had a column for."""

    def __init__(self, source: str, settings: DataSection) -> None:
        self.source, self.settings = source, settings
        self.ignored = frozenset(name.lower() for name in settings.ignore)
        self.unread: Counter[str] = Counter()
        self.contradicted = 0
        self.mapped: set[str] = set()
        self._stopping: dict[str, tuple[str, bool]] = {}
        self._implicit, self._bare = 0, 0
        self._sentences: dict[str, str] = {}
        named = [name for name in (settings.weight_column, settings.confidence_column) if name is not None]
        self._of_settings = {*named, *(name.partition(".")[0] for name in named)}

    def to_json(self) -> dict[str, Any]:
        """What was noted, as plain values."""
        return {
            "unread": dict(self.unread),
            "contradicted": self.contradicted,
            "mapped": sorted(self.mapped),
            "stopping": {name: list(found) for name, found in self._stopping.items()},
            "implicit": self._implicit,
            "bare": self._bare,
            "sentences": self._sentences,
        }

    def absorb(self, noted: Mapping[str, Any]) -> None:
        """Take in what `to_json` gave of later rows of the same source."""
        self.unread.update(noted["unread"])
        self.contradicted += noted["contradicted"]
        self.mapped |= set(noted["mapped"])
        self._implicit += noted["implicit"]
        self._bare += noted["bare"]
        for name, (place, is_free) in noted["stopping"].items():
            self._stopping.setdefault(name, (place, is_free))
        for name, place in noted["sentences"].items():
            self._sentences.setdefault(name, place)

    def see(self, row: Row) -> None:
        """Look which columns of data.columns a row has, whatever becomes of it."""
        for meaning, column in self.settings.columns.items():
            if meaning not in self.mapped and not is_absent(dig(row, column)):
                self.mapped.add(meaning)

    def add(self, place: str, row: Row, view: RowView, example: Example, *, stops: bool) -> None:
        """Count the columns of a row that was used. stops: whether one that is not read may stop the run."""
        values = {name: dict.get(view, name) for name in dict.keys(view)}
        is_pair = not is_absent(values.get("chosen")) and not is_absent(values.get("rejected"))
        self.contradicted += is_pair and len(example.answers) > 1 and contradicts(values)
        dropped = _dropped_prompt(view, example)
        said: dict[bool, str] = {}
        is_implicit = is_pair and isinstance(example.prompt, str) and is_absent(values.get("prompt"))
        self._implicit += is_implicit
        self._bare += is_implicit and len(str(example.prompt).split()) < _FEWEST_WORDS
        for name, value in row.items():
            if (name in view.used and name not in dropped) or is_absent(value):
                continue
            if name in self._of_settings:
                continue
            self.unread[name] += 1
            kind = kind_of_column(name)
            if is_implicit and kind is None and stops and name.lower() not in self.ignored and _is_sentence(value):
                self._sentences.setdefault(name, place)
            if kind is None or not kind.stops or not stops or name.lower() in self.ignored or name in self._stopping:
                continue
            if kind.title == "rating" and is_pair and _rates_a_list(values, name):
                continue
            if kind.title in ("prompt", "system text", "conversation"):
                said = said or {whole: "\n".join(texts) for whole, texts in _said(example)}
                if is_said(value, said[kind.title == "conversation"]):
                    continue
            is_free = kind.meaning is not None and is_absent(dict.get(view, kind.meaning))
            self._stopping[name] = (place, is_free)

    def add_prompt(self, place: str, row: Row, view: RowView, example: Example) -> None:
        """The same for a row that is a prompt, where only what belongs to a prompt may stop the run."""
        said = "\n".join(texts_of(example.prompt) + texts_of(example.answers))
        for name, value in row.items():
            if name in view.used or is_absent(value):
                continue
            self.unread[name] += 1
            kind = kind_of_column(name)
            if kind is None or kind.meaning not in _OF_PROMPTS or name.lower() in self.ignored:
                continue
            if name not in self._stopping and not is_said(value, said):
                self._stopping[name] = (place, is_absent(dict.get(view, kind.meaning)))

    def problem(self, layout: str) -> str | None:
        """Why the source cannot be used as it is, and the line to write; None when nothing stops it."""
        if 2 * self._bare >= self._implicit:  # where the answers share their beginning, that is the prompt
            for name, place in self._sentences.items():
                self._stopping.setdefault(name, (place, True))
        if not self._stopping:
            return None
        kinds = {name: kind_of_column(name) or _UNKNOWN for name in self._stopping}
        listed = ", ".join(f"{name} ({kind.title}, {self.unread[name]:,} rows)" for name, kind in kinds.items())
        first = next(iter(self._stopping.values()))[0]
        return (
            f"{self.source}: read as {layout}, columns that nothing reads have names that say they matter: "
            f"{listed}; first at {first}. Something else would have been trained than what the file says. "
            f"Write {self._remedy(kinds)}."
        )

    def _remedy(self, kinds: Mapping[str, ColumnKind]) -> str:
        mapped: dict[str, str] = {}
        for name, kind in kinds.items():
            if self._stopping[name][1] and kind.meaning is not None and kind.meaning != name:
                mapped.setdefault(kind.meaning, name)
        ignore = f"data.ignore: [{', '.join(kinds)}] to leave them out"
        if not mapped:
            return ignore
        rest = [name for name in kinds if name not in mapped.values()]
        pairs = ", ".join(f"{meaning}: {name}" for meaning, name in mapped.items())
        more = f" with data.ignore: [{', '.join(rest)}]" if rest else ""
        return f"data.columns: {{{pairs}}}{more} to read them, or {ignore}"


def _is_sentence(value: object) -> bool:
    return isinstance(value, str) and len(value.split()) >= _FEWEST_WORDS


def _said(example: Example) -> Iterator[tuple[bool, list[str]]]:
    """(whether with the answers, texts)."""
    yield False, texts_of(example.prompt)
    yield True, texts_of(example.prompt) + texts_of(example.answers)


def _rates_a_list(values: Row, name: str) -> bool:
    """Whether a column has a list of ratings next to another list, of answers."""
    return isinstance(values.get(name), list) and any(
        isinstance(other, list) for column, other in values.items() if column != name
    )


def _dropped_prompt(view: RowView, example: Example) -> tuple[str, ...]:
    """Columns of a prompt in text that stands next to whole conversations, and is no part of them."""
    prompt = dict.get(view, "prompt")
    if not isinstance(prompt, str) or not prompt or not isinstance(example.prompt, list):
        return ()
    if is_said(prompt, "\n".join(texts_of(example.prompt))):
        return ()
    return view.origin.get("prompt", ("prompt",))


def missing_columns(settings: DataSection, uses: list[ColumnUse]) -> list[str]:
    """A sentence for data.columns that name columns of no row at all."""
    lost = {
        meaning: column
        for meaning, column in settings.columns.items()
        if not any(meaning in use.mapped for use in uses)
    }
    if not lost:
        return []
    named = ", ".join(f"{meaning}: {column}" for meaning, column in lost.items())
    return [
        f"data.columns: {named}: no row has such a column, so it would have been without effect. Correct the name; columns "
        f"are compared letter by letter, and dots reach into nested fields."
    ]
