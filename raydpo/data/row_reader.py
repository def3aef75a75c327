"""Reads one row of a source: its columns under the names of layouts, the layout that fits it, what else it holds.

Comes in: a row as it is in the file. Goes out: its `Example`, label and all, or BadRow; the columns that were read are
recorded in `ColumnUse`.
Decision: with `data.format: auto` every row is read by the layout that fits it, and the layout of most rows of the file
reads those that fit none, so that their reason is told in its words. Price: about a microsecond a layout and row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from raydpo.config.outside import is_outside
from raydpo.config.sections import DataSection
from raydpo.data.aliases import canonical
from raydpo.data.bad_rows import BadRow
from raydpo.data.chat_template import template_settings
from raydpo.data.column_use import ColumnUse
from raydpo.data.format import Format
from raydpo.data.formats import detect, fitting, format_named
from raydpo.data.messages import Example, Row
from raydpo.data.row_extras import refuse_media, with_system_turn
from raydpo.data.row_view import RowView
from raydpo.data.token_rows import fits_tokenized, late_ids


class RowReader:
    """Rows of `source`. first: its first good rows, which decide its layout. num_answers: 2 for pairs. needs: what the
    objective reads, "pairs", "labels" or "answers"; is_unpaired: pairs are read as two labelled answers."""

    def __init__(
        self,
        source: str,
        settings: DataSection,
        first: Iterable[Row],
        *,
        num_answers: int,
        needs: str,
        is_unpaired: bool,
    ) -> None:
        self.settings, self.num_answers, self.needs, self.is_unpaired = settings, num_answers, needs, is_unpaired
        self.use = ColumnUse(source, settings)
        self.others: Counter[str] = Counter()
        self._is_auto = settings.format == "auto"
        self._is_ours = not is_outside(settings.format)
        self.first = [values for row in first if (values := self._values(row)) is not None]
        name = detect(self.first) if self._is_auto else settings.format
        self.layout: Format | None = format_named(name) if name is not None else None

    def _values(self, row: Row) -> dict[str, Any] | None:
        try:
            return self._canonical(row)[0]
        except BadRow:
            return None

    def _canonical(self, row: Row) -> tuple[dict[str, Any], Mapping[str, tuple[str, ...]]]:
        return canonical(row, self.settings.columns, self.use.ignored, is_ours=self._is_ours)

    def read(self, place: str, row: Row) -> tuple[Example, Format]:
        """The example that a row is, and the layout that read it. BadRow; DataError for ids that come late."""
        if self.settings.columns:
            self.use.see(row)
        values, origin = self._canonical(row)
        layout = self._layout_of(place, values)
        if layout is None:
            raise BadRow("unknown_format", f"fields: {', '.join(map(str, row))[:160] or 'none'}")
        self._check_kind(layout)
        view = RowView(values, origin)
        example = layout.convert(view, self.num_answers)
        if self._is_ours:
            example = with_system_turn(example, view)
            refuse_media(row, self.use.ignored, example)
        settings = template_settings(view, self.settings.chat_template_kwargs)
        if settings != example.template_settings:
            example = replace(example, template_settings=settings)
        if layout is not self.layout:
            self.others[layout.name] += 1
        self.use.add(place, row, view, example, stops=self._is_ours and layout.name != "tokenized")
        return example, layout

    def _layout_of(self, place: str, values: Row) -> Format | None:
        majority = self.layout
        if not self._is_auto or (majority is not None and majority.name == "tokenized"):
            return majority
        if majority is not None and fits_tokenized(values):
            raise late_ids(place, majority.name)
        own = fitting(values)
        if own is None or (own.data == "answers" and self.num_answers > 1):
            return majority or own
        return own

    def _check_kind(self, layout: Format) -> None:
        """Refuse a pair among labelled answers: read for one answer it would be a desirable one."""
        if self.needs == "labels" and not self.is_unpaired and layout.data == "pairs":
            raise BadRow("missing_field", "label is missing: the row is a pair")
