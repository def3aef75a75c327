"""Token shards: examples (a prompt and its answers as token ids) on disk, and a random-access view of them.

Layout: `<folder>/<split>-00000.arrow`, ...; `<folder>/<split>-columns.arrow`, the lengths of all; `<folder>/<split>.json`, the
manifest that is written last.
Decision: a shard is verified by hash and memory-mapped when its first example is asked for, so that a process pays for what
it reads, and a node has one copy of it. Price: damage in a shard is found then, and not at the start, unless somebody calls
`verify` (the driver does, at each start). A split of before there were columns is verified whole when it is opened.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa

from raydpo.artifacts.arrow import ShardRecord, read_shard, write_shard
from raydpo.artifacts.digest import canonical
from raydpo.artifacts.durable import write_json
from raydpo.artifacts.elsewhere import bring
from raydpo.artifacts.example_chunk import ExampleChunk
from raydpo.artifacts.example_columns import ExampleColumns, joined, read_columns, write_columns
from raydpo.artifacts.lazy_chunks import LazyChunks
from raydpo.errors import IntegrityError
from raydpo.schema.json_text import read_object
from raydpo.schema.rows import EXAMPLES, MASKED_EXAMPLES

Masks = Sequence[np.ndarray | Sequence[bool] | None]
"""Of each answer: which of its tokens the loss covers, None for all."""


class ExampleWriter:
    """Appends examples of one split; nothing counts before `close` has written the manifest."""

    def __init__(self, folder: Path, split: str, examples_per_shard: int = 4096) -> None:
        self.folder, self.split, self.examples_per_shard = folder, split, examples_per_shard
        self._rows: list[dict[str, object]] = []
        self._waiting: list[pa.RecordBatch] = []
        self._records: list[ShardRecord] = []
        self._columns: list[ExampleColumns] = []
        folder.mkdir(parents=True, exist_ok=True)
        _manifest(folder, split).unlink(missing_ok=True)

    def extend(self, examples: pa.RecordBatch) -> None:
        """Append examples that are columns already, of `MASKED_EXAMPLES`."""
        self._gather_rows()
        start = 0
        while start < len(examples):
            room = self.examples_per_shard - sum(map(len, self._waiting))
            part = examples.slice(start, room)
            self._waiting.append(part if len(part) == len(examples) else part.take(pa.array(np.arange(len(part)))))
            start += len(part)
            if len(part) == room:
                self._flush()

    def add(
        self,
        prompt_ids: Sequence[int] | np.ndarray,
        answer_ids: Sequence[Sequence[int] | np.ndarray],
        row_keys: Sequence[str],
        source: str,
        label: bool = True,
        weight: float = 1.0,
        answer_masks: Masks = (),
    ) -> None:
        """Append one example; `answer_ids`, `row_keys` and `answer_masks`, if there are any, have one entry an answer."""
        row: dict[str, object] = {
            "prompt_ids": prompt_ids,
            "answer_ids": answer_ids,
            "row_keys": row_keys,
            "source": source,
            "label": label,
            "weight": weight,
            "answer_masks": [[] if mask is None else mask for mask in answer_masks or [None] * len(answer_ids)],
        }
        self._rows.append(row)
        if len(self._rows) == self.examples_per_shard:
            self._gather_rows()

    def close(self, entries: Sequence[tuple[str, int]] = ()) -> None:
        """Write what is left, then the manifest. entries: (name, examples) of each part of the split, in order."""
        self._gather_rows()
        if self._waiting:
            self._flush()
        manifest: dict[str, object] = {"shards": [asdict(record) for record in self._records]}
        if self._columns:
            columns, name = joined(self._columns), f"{self.split}-columns.arrow"
            num_answers = columns.answer_lengths.shape[1]
            record = write_columns(self.folder / name, columns)
            manifest["columns"] = {"num_answers": num_answers, "file": asdict(record)}
        write_json(_manifest(self.folder, self.split), manifest | ({"entries": list(entries)} if entries else {}))

    def _gather_rows(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            self.extend(pa.RecordBatch.from_pylist(rows, schema=MASKED_EXAMPLES))

    def _flush(self) -> None:
        table = pa.Table.from_batches(self._waiting).combine_chunks()
        is_masked = any(len(chunk.flatten().flatten()) for chunk in table["answer_masks"].chunks)
        table = table if is_masked else table.select(EXAMPLES.names)
        (batch,) = table.to_batches()
        self._columns.append(joined([ExampleColumns.of(ExampleChunk(batch))]))
        self._records.append(write_shard(self.folder / f"{self.split}-{len(self._records):05d}.arrow", table))
        self._waiting = []


class ExampleTable:
    """The examples of one split, by index.

    num_answers: of each example.
    prompt_lengths: [n] int32, tokens.
    answer_lengths: [n, answers] int32, tokens.
    loss_lengths: [n, answers] int32, tokens that the loss covers; those of the answer where it has no mask.
    labels: [n] bool, whether the answer is desirable.
    weights: [n] float32, factors of the loss.
    is_weighted: whether any weight is not 1.
    entries: (name, examples) of each entry of the data, in order, where there are several.
    """

    def __init__(self, tables: Sequence[pa.Table], entries: Sequence[tuple[str, int]] = ()) -> None:
        batches = (batch for table in tables for batch in table.to_batches())
        chunks = [ExampleChunk(batch) for batch in batches if len(batch)]
        self._begin(chunks, list(map(len, chunks)), joined([ExampleColumns.of(chunk) for chunk in chunks]), entries)
        for chunk in chunks:
            chunk.forget_lengths()

    def _begin(
        self,
        chunks: Sequence[ExampleChunk],
        sizes: Sequence[int],
        columns: ExampleColumns,
        entries: Sequence[tuple[str, int]],
    ) -> None:
        self.entries = tuple(entries)
        self._chunks, self._ends = chunks, list(accumulate(sizes))
        self.num_answers = columns.answer_lengths.shape[1]
        self.prompt_lengths, self.answer_lengths = columns.prompt_lengths, columns.answer_lengths
        self.loss_lengths, self.labels, self.weights = columns.loss_lengths, columns.labels, columns.weights
        self.is_weighted = bool((self.weights != 1).any())
        if not self.is_weighted:
            self.weights = np.broadcast_to(np.float32(1), len(self))

    @classmethod
    def open(cls, folder: Path, split: str) -> ExampleTable:
        """Map `split`. Raises IntegrityError when its files are not what was committed; of a shard that is not read, never."""
        bring(folder)
        found = _read_manifest(folder, split)
        if found.columns is None:
            tables = [read_shard(folder / r.name, r, EXAMPLES, MASKED_EXAMPLES) for r in found.shards]
            return cls(tables, found.entries)
        columns = read_columns(folder / found.columns.name, found.columns, found.num_answers)
        sizes, table = [record.rows for record in found.shards], cls([])
        if sum(sizes) != len(columns.labels):
            raise IntegrityError(
                f"{_manifest(folder, split)} says {sum(sizes):,} examples, and {len(columns.labels):,}"
            )
        table._begin(LazyChunks(folder, found.shards, columns), sizes, columns, found.entries)
        return table

    def verify(self) -> ExampleTable:
        """Map every shard now; the table. Raises IntegrityError when one is not what was committed."""
        for _ in self._chunks:
            pass
        return self

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _place(self, example: int) -> tuple[ExampleChunk, int]:
        """The chunk that holds an example, and its place there."""
        if not 0 <= example < len(self):
            raise IndexError(f"example {example} of {len(self)}")
        number = bisect_right(self._ends, example)
        return self._chunks[number], example - (self._ends[number - 1] if number else 0)

    def prompt_ids(self, example: int) -> np.ndarray:
        """Token ids of the prompt, int32; a read-only view."""
        chunk, place = self._place(example)
        return chunk.prompt_ids(place)

    def answer_ids(self, example: int) -> list[np.ndarray]:
        """Token ids of each answer, int32; read-only views."""
        chunk, place = self._place(example)
        return chunk.answer_ids(place)

    def answer_masks(self, example: int) -> list[np.ndarray | None]:
        """Which tokens of each answer the loss covers, bool; None: all of them."""
        chunk, place = self._place(example)
        return chunk.answer_masks(place)

    def row_keys(self, example: int) -> list[str]:
        """Key of each row (prompt with answer)."""
        chunk, place = self._place(example)
        return chunk.row_keys(place)

    def source(self, example: int) -> str:
        """Where the example came from: "file:line"."""
        chunk, place = self._place(example)
        return chunk.source(place)

    def chunks(self) -> Iterator[ExampleChunk]:
        """Views of the shards, in order."""
        yield from self._chunks


def examples_digest(folder: Path, split: str) -> str:
    """Digest of the rows, labels and weights of a split, in order: equal for equal examples, wherever they were read.

    It is `digest_of` of the list of (row keys, label, weight), of which one chunk at a time is in memory.
    """
    digest, mark = hashlib.sha256(), b"["
    for chunk in ExampleTable.open(folder, split).chunks():
        marks = zip(chunk.labels().tolist(), chunk.weights().tolist(), strict=True)
        rows = [(chunk.row_keys(place), *each) for place, each in enumerate(marks)]
        digest.update(mark + canonical(rows)[1:-1])
        mark = b","
    digest.update(b"]" if mark == b"," else b"[]")
    return digest.hexdigest()


def _manifest(folder: Path, split: str) -> Path:
    return folder / f"{split}.json"


@dataclass(frozen=True)
class _Manifest:
    """What was committed of a split. columns: None in one of before there were any."""

    shards: list[ShardRecord]
    entries: list[tuple[str, int]]
    columns: ShardRecord | None = None
    num_answers: int = 0


def _read_manifest(folder: Path, split: str) -> _Manifest:
    path = _manifest(folder, split)
    try:
        manifest = read_object(path)
        if not manifest.keys() <= {"shards", "entries", "columns"}:
            raise ValueError
        entries = [(str(name), int(number)) for name, number in manifest.get("entries", [])]
        shards = [ShardRecord(**record) for record in manifest["shards"]]
        if (columns := manifest.get("columns")) is None:
            return _Manifest(shards, entries)
        return _Manifest(shards, entries, ShardRecord(**columns["file"]), int(columns["num_answers"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path} is missing or cannot be read: the data stage did not finish") from error
