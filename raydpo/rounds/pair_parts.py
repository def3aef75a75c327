"""A round's pairs as they are made: preference records that become Arrow parts, of which the newest alone is held.

Comes in: records, those of a prompt at a time. Goes out: a piece with its parts. Decision: a part has many prompts' pairs, so
that training reads few files, and waits as columns, not as Python values. Pairs are made from the beginning each time: that
costs next to nothing, and a choice of another package may choose others now.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from raydpo.artifacts import read_commit
from raydpo.rundir.piece import Piece
from raydpo.rundir.piece_parts import in_order, table_of

PAIRS_PER_PART = 4096
"""At least, but for the last part."""
_ROWS_PER_TABLE = 128
OFFLINE = "offline.jsonl"
_OLD = "pairs.jsonl"


class PairParts:
    """The parts of `piece`, which begins anew. schema: of the records. versions: of policies -> pairs of their answers."""

    def __init__(self, piece: Piece, schema: pa.Schema, pairs_per_part: int = PAIRS_PER_PART) -> None:
        piece.begin(anew=True)
        self._piece, self._schema, self._pairs_per_part = piece, schema, pairs_per_part
        self._records: list[Mapping[str, Any]] = []
        self._tables: list[pa.Table] = []
        self._num_parts = self.num_pairs = 0
        self._prompts: set[str] = set()
        self.versions = Counter[int]()

    @property
    def is_of_one_prompt(self) -> bool:
        """Whether all pairs have the same prompt."""
        return len(self._prompts) == 1

    def add(self, key: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Records of the prompt with this key."""
        if records and len(self._prompts) < 2:
            self._prompts.add(key)
        self.num_pairs += len(records)
        self.versions.update(record["version"] for record in records)
        self._records += map(_in_cells, records)
        if len(self._records) >= _ROWS_PER_TABLE:
            self._to_columns()
        if sum(table.num_rows for table in self._tables) >= self._pairs_per_part:
            self._write()

    def forget(self) -> None:
        """There are no pairs after all."""
        self._records, self._tables, self._prompts = [], [], set()
        for number in range(self._num_parts):
            self._piece.drop_part(number)
        self._num_parts = self.num_pairs = 0
        self.versions.clear()

    def finish(self) -> None:
        """Write what is left; where there are no pairs, a part without rows."""
        self._to_columns()
        if self._tables or not self._num_parts:
            self._write()

    def _to_columns(self) -> None:
        if self._records:
            self._tables.append(table_of(self._records, self._schema))
        self._records = []

    def _write(self) -> None:
        tables = [self._schema.empty_table(), *self._tables]
        self._piece.write_part(self._num_parts, pa.concat_tables(tables).combine_chunks())
        self._num_parts, self._tables = self._num_parts + 1, []


def _in_cells(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record for columns of text: messages as JSON text."""
    sides = {name: record[name] for name in ("prompt", "chosen", "rejected") if not isinstance(record[name], str)}
    return {**record, **{name: json.dumps(said, ensure_ascii=False) for name, said in sides.items()}}


def files_of(folder: Path) -> Iterator[Path]:
    """What `data.train` of a round's training is: its pairs, and those of the data that are mixed in."""
    names = read_commit(folder)["files"]
    yield from (folder / name for name in (*in_order(folder, names), *(n for n in (_OLD, OFFLINE) if n in names)))
