"""Token shards: examples (a prompt and its answers as token ids) on disk, and a random-access view of them.

Layout: `<folder>/<split>-00000.arrow`, ..., and `<folder>/<split>.json`, the manifest that is written last.
Decision: a table is verified by hash when it is opened and memory-mapped, shard by shard, so that any number of processes
on a node share one copy. What a process has for itself are the lengths: about 13 bytes an example of two answers.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa

from raydpo.artifacts.arrow import ShardRecord, read_shard, write_shard
from raydpo.artifacts.digest import canonical
from raydpo.artifacts.durable import write_json
from raydpo.artifacts.elsewhere import bring
from raydpo.artifacts.example_chunk import ExampleChunk, mixed
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
        manifest = {"shards": [asdict(record) for record in self._records]}
        write_json(_manifest(self.folder, self.split), manifest | ({"entries": list(entries)} if entries else {}))

    def _gather_rows(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            self.extend(pa.RecordBatch.from_pylist(rows, schema=MASKED_EXAMPLES))

    def _flush(self) -> None:
        table = pa.Table.from_batches(self._waiting).combine_chunks()
        is_masked = any(len(chunk.flatten().flatten()) for chunk in table["answer_masks"].chunks)
        table = table if is_masked else table.select(EXAMPLES.names)
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
        self.entries = tuple(entries)
        batches = (batch for table in tables for batch in table.to_batches())
        self._chunks = [ExampleChunk(batch) for batch in batches if len(batch)]
        if len({chunk.num_answers for chunk in self._chunks}) > 1:
            raise mixed()
        self._ends = list(accumulate(map(len, self._chunks)))
        self.num_answers = self._chunks[0].num_answers or 0 if self._chunks else 2
        self.prompt_lengths = _joined([chunk.prompt_lengths for chunk in self._chunks], np.zeros(0, np.int32))
        none = np.zeros((0, self.num_answers), np.int32)
        self.answer_lengths = _joined([chunk.answer_lengths for chunk in self._chunks], none)
        is_masked = any(chunk.loss_lengths is not chunk.answer_lengths for chunk in self._chunks)
        covered = [chunk.loss_lengths for chunk in self._chunks] if is_masked else []
        self.loss_lengths = _joined(covered, none) if is_masked else self.answer_lengths
        for chunk in self._chunks:
            chunk.forget_lengths()
        self.labels = _joined([chunk.labels() for chunk in self._chunks], np.zeros(0, bool))
        self.weights = _joined([chunk.weights() for chunk in self._chunks], np.zeros(0, np.float32))
        self.is_weighted = bool((self.weights != 1).any())
        if not self.is_weighted:
            self.weights = np.broadcast_to(np.float32(1), len(self))

    @classmethod
    def open(cls, folder: Path, split: str) -> ExampleTable:
        """Verify and map every shard of `split`. Raises IntegrityError when one is not what was committed."""
        bring(folder)
        records, entries = _records(folder, split)
        tables = [read_shard(folder / r.name, r, EXAMPLES, MASKED_EXAMPLES) for r in records]
        return cls(tables, entries)

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


def _joined(parts: Sequence[np.ndarray], none: np.ndarray) -> np.ndarray:
    """A copy of all parts in a row; `none` where there are none."""
    return np.concatenate(parts) if parts else none


def _manifest(folder: Path, split: str) -> Path:
    return folder / f"{split}.json"


def _records(folder: Path, split: str) -> tuple[list[ShardRecord], list[tuple[str, int]]]:
    path = _manifest(folder, split)
    try:
        manifest = read_object(path)
        entries = [(str(name), int(number)) for name, number in manifest.get("entries", [])]
        return [ShardRecord(**record) for record in manifest["shards"]], entries
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path} is missing or cannot be read: the data stage did not finish") from error
