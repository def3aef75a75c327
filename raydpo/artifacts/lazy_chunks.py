"""Chunks of a split, each verified and mapped when it is first asked for.

Comes in: the records of the shards. Goes out: chunks by number. Decision: a chunk stays open, so that a process verifies each
shard once; its lengths have to be those that order and batches were made from.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import overload

from raydpo.artifacts.arrow import ShardRecord, read_shard
from raydpo.artifacts.example_chunk import ExampleChunk
from raydpo.artifacts.example_columns import ExampleColumns
from raydpo.errors import IntegrityError
from raydpo.schema.rows import EXAMPLES, MASKED_EXAMPLES


class LazyChunks(Sequence[ExampleChunk]):
    """The shards of a split. columns: of all their examples."""

    def __init__(self, folder: Path, records: Sequence[ShardRecord], columns: ExampleColumns) -> None:
        self._folder, self._records, self._columns = folder.absolute(), records, columns
        self._starts = [0, *accumulate(record.rows for record in records)]
        self._opened: dict[int, ExampleChunk] = {}

    def __len__(self) -> int:
        return len(self._records)

    @property
    def num_opened(self) -> int:
        """Shards that were verified so far."""
        return len(self._opened)

    @overload
    def __getitem__(self, number: int) -> ExampleChunk: ...
    @overload
    def __getitem__(self, number: slice) -> list[ExampleChunk]: ...
    def __getitem__(self, number: int | slice) -> ExampleChunk | list[ExampleChunk]:
        if isinstance(number, slice):
            return [self[each] for each in range(len(self))[number]]
        number = range(len(self))[number]
        if number not in self._opened:
            self._opened[number] = self._open(number)
        return self._opened[number]

    def _open(self, number: int) -> ExampleChunk:
        record = self._records[number]
        path = self._folder / record.name
        batches = read_shard(path, record, EXAMPLES, MASKED_EXAMPLES).to_batches()
        chunk = ExampleChunk(batches[0]) if len(batches) == 1 else None
        if chunk is None or not self._columns.agrees(chunk, self._starts[number]):
            raise IntegrityError(f"{path} is not the shard whose lengths were committed with the split")
        chunk.forget_lengths()
        return chunk
