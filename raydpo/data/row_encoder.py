"""Rows of one source as token ids: its layout is found, each row is read, written down as text and encoded.

Comes in: a source. Goes out: for each good row its place, ids, row keys, label and weight; everything else is in the tally.
Decision: what becomes of a row depends on the row, the first rows of its source and the config, and on no other row, so that
any process may encode any range of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

from raydpo.config import Config
from raydpo.data.bad_rows import BadRow, confidence, weight
from raydpo.data.embedding_rows import Beyond
from raydpo.data.encode import Encoded
from raydpo.data.format import Format
from raydpo.data.lines import encode_lines, taken
from raydpo.data.messages import Example, Row
from raydpo.data.read import Line
from raydpo.data.report import Tally
from raydpo.data.row_reader import RowReader
from raydpo.data.sources import Source
from raydpo.data.store import Store
from raydpo.data.template import Rendered, no_template, render
from raydpo.data.token_rows import other_tokenizer
from raydpo.data.tokenizer import TextTokenizer
from raydpo.errors import DataError
from raydpo.schema.events import Observer, ignore

_DETECT_ROWS = 64
_DETECT_LINES = 4096


class Beside(NamedTuple):
    """What goes with the ids of a row: its label and weight, and what the ids were made from, where that is still known."""

    label: bool
    factor: float
    example: Example | None = None
    text: Rendered | None = None


EncodedRow = tuple[str, Encoded, tuple[str, ...], Beside]
"""Place, ids, row keys, and what goes with them."""


class RowEncoder:
    """Encodes rows of any source with one tokenizer. beyond: is shown every good row."""

    def __init__(self, config: Config, tokenizer: TextTokenizer, beyond: Beyond, observer: Observer = ignore) -> None:
        self.settings, self.objective = config.data, config.objective.row
        self.is_unpaired = self.settings.unpair and self.objective.data == "labels"
        self.num_answers = 2 if self.is_unpaired else self.objective.num_answers
        self.tokenizer, self.beyond, self.observer = tokenizer, beyond, observer

    def open(self, source: Source) -> tuple[list[Line], Iterator[Line]]:
        """The first lines of a source, which decide its layout, and all of them, these included."""
        rows = source.rows()
        seen = taken(rows, _DETECT_ROWS)
        while len(seen) < _DETECT_LINES and not any(line.row is not None for line in seen):
            more = taken(rows, _DETECT_ROWS)
            if not more:
                break
            seen += more
        return seen, chain(seen, rows)

    def reader(self, name: str, seen: Sequence[Line]) -> RowReader:
        """What reads the rows of source `name`. seen: its first lines."""
        good = [line.row for line in seen if line.row is not None]
        return RowReader(
            name,
            self.settings,
            good,
            num_answers=self.num_answers,
            needs=self.objective.data,
            is_unpaired=self.is_unpaired,
        )

    def rows(self, reader: RowReader, lines: Iterator[Line], tally: Tally) -> Iterator[EncodedRow]:
        """Good rows of the source of `reader`, in order. Raises DataError when the whole source cannot be written down."""
        found = encode_lines(
            reader.use.source,
            lines,
            partial(self._text_of, reader),
            self.tokenizer,
            tally,
            self.beyond,
            max_length=self.settings.max_length,
            overlong=self.settings.overlong,
            observer=self.observer,
        )
        for place, example, beside in found:
            yield place, example, Store.keys(example), beside

    def check_labels(self, name: str, layout: Format | None) -> None:
        """Raise DataError for a file of pairs where labels are needed, or of labels where pairs are to be split."""
        if self.objective.data != "labels" or layout is None:
            return
        if layout.data == "pairs" and not self.is_unpaired:
            raise DataError(
                f"{name} holds pairs ({layout.title}); objective {self.objective.name} reads rows of prompt, completion "
                "and label, and would have had none. Set data.unpair: true to read each pair as a desirable and an "
                "undesirable answer."
            )
        if layout.data == "labels" and self.is_unpaired:
            raise DataError(
                f"{name} holds labelled answers already; data.unpair would have split pairs, of which it has none. "
                "Leave data.unpair out, or name files of pairs."
            )

    def _text_of(self, reader: RowReader, place: str, row: Row) -> tuple[Rendered, Beside]:
        """Text of a row and what belongs to it. Raises DataError when the whole file cannot be written down."""
        if self.settings.confidence_column is not None and self.settings.min_confidence is not None:
            confidence(row, self.settings.confidence_column, self.settings.min_confidence)
        column = self.settings.weight_column
        factor = 1.0 if column is None else weight(row, column)
        example, layout = reader.read(place, row)
        if self.objective.data == "labels" and layout.data == "answers":
            raise BadRow("missing_field", "label is missing")
        if self.objective.data == "answers" and not example.label:
            raise BadRow("undesirable", "label is false")
        if example.tokens is not None and example.tokens.tokenizer != self.tokenizer.ids_digest:
            raise other_tokenizer(example.tokens, self.tokenizer, place)
        if example.is_conversation and example.plain is None and not self.tokenizer.has_template:
            raise no_template(self.tokenizer, reader.use.source)
        text = render(example, self.tokenizer, self.settings.control_tokens)
        return text, Beside(example.label, factor, example, text)
