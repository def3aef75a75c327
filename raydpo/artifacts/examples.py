"""Token shards: examples (a prompt and its answers as token ids) on disk, and a random-access view of them.

Layout: `<folder>/<split>-00000.arrow`, ..., and `<folder>/<split>.json`, the manifest that is written last.
Decision: a table is verified by hash when it is opened and memory-mapped afterwards, so that any number of processes on
a node share one copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa

from raydpo.artifacts.arrow import ShardRecord, read_shard, write_shard
from raydpo.artifacts.digest import digest_of
from raydpo.artifacts.durable import write_json
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
        self._records: list[ShardRecord] = []
        folder.mkdir(parents=True, exist_ok=True)
        _manifest(folder, split).unlink(missing_ok=True)

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
            self._flush()

    def close(self, entries: Sequence[tuple[str, int]] = ()) -> None:
        """Write what is left, then the manifest. entries: (name, examples) of each part of the split, in order."""
        if self._rows:
            self._flush()
        manifest = {"shards": [asdict(record) for record in self._records]}
        write_json(_manifest(self.folder, self.split), manifest | ({"entries": list(entries)} if entries else {}))

    def _flush(self) -> None:
        is_masked = any(len(mask) for row in self._rows for mask in row["answer_masks"])  # type: ignore[attr-defined]
        table = pa.Table.from_pylist(self._rows, schema=MASKED_EXAMPLES if is_masked else EXAMPLES)
        self._records.append(write_shard(self.folder / f"{self.split}-{len(self._records):05d}.arrow", table))
        self._rows = []


class ExampleTable:
    """The examples of one split, by index.

    prompt_lengths: [n] int64, tokens.
    answer_lengths: [n, answers] int64, tokens.
    loss_lengths: [n, answers] int64, tokens that the loss covers; those of the answer where it has no mask.
    labels: [n] bool, whether the answer is desirable.
    weights: [n] float32, factors of the loss.
    is_weighted: whether any weight is not 1.
    entries: (name, examples) of each entry of the data, in order, where there are several.
    """

    def __init__(self, table: pa.Table, entries: Sequence[tuple[str, int]] = ()) -> None:
        self.entries = tuple(entries)
        self._prompts = _Lists(table["prompt_ids"])
        answers = _combined(table["answer_ids"])
        self._answers = _Lists(answers.values)
        keys = _combined(table["row_keys"])
        per_example = np.diff(_offsets(keys))
        num_answers = int(per_example[0]) if len(per_example) else 2
        if not ((per_example == num_answers) & (np.diff(_offsets(answers)) == num_answers)).all():
            raise IntegrityError("token shards mix examples with different numbers of answers or of row keys")
        self.num_answers = num_answers
        self._keys, self._sources = keys.flatten(), _combined(table["source"])
        self.labels = table["label"].to_numpy().astype(bool)
        self.weights = table["weight"].to_numpy().astype(np.float32)
        self.is_weighted = bool((self.weights != 1).any())
        self.prompt_lengths = self._prompts.lengths
        self.answer_lengths = self._answers.lengths.reshape(-1, num_answers)
        self._masks = _Lists(_combined(table["answer_masks"]).values) if "answer_masks" in table.column_names else None
        self.loss_lengths = self.answer_lengths if self._masks is None else self._count_covered(self._masks)

    @classmethod
    def open(cls, folder: Path, split: str) -> ExampleTable:
        """Verify and map every shard of `split`. Raises IntegrityError when one is not what was committed."""
        records, entries = _records(folder, split)
        tables = [read_shard(folder / r.name, r, EXAMPLES, MASKED_EXAMPLES) for r in records]
        if any(table.schema.equals(MASKED_EXAMPLES) for table in tables):
            tables = [_with_masks(table) for table in tables]
        return cls(pa.concat_tables(tables) if tables else EXAMPLES.empty_table(), entries)

    def __len__(self) -> int:
        return len(self._sources)

    def prompt_ids(self, example: int) -> np.ndarray:
        """Token ids of the prompt, int32; a read-only view."""
        return self._prompts[example]

    def answer_ids(self, example: int) -> list[np.ndarray]:
        """Token ids of each answer, int32; read-only views."""
        first = example * self.num_answers
        return [self._answers[first + answer] for answer in range(self.num_answers)]

    def answer_masks(self, example: int) -> list[np.ndarray | None]:
        """Which tokens of each answer the loss covers, bool; None: all of them."""
        if self._masks is None:
            return [None] * self.num_answers
        first = example * self.num_answers
        found = [self._masks[first + answer] for answer in range(self.num_answers)]
        return [mask if len(mask) else None for mask in found]

    def _count_covered(self, masks: _Lists) -> np.ndarray:
        lengths = masks.lengths.reshape(self.answer_lengths.shape)
        if not ((lengths == 0) | (lengths == self.answer_lengths)).all():
            raise IntegrityError("token shards hold an answer mask of another length than its answer")
        covered = masks.sums().reshape(lengths.shape)
        return np.where(lengths == 0, self.answer_lengths, covered)

    def row_keys(self, example: int) -> list[str]:
        """Key of each row (prompt with answer)."""
        first = example * self.num_answers
        return [self._keys[first + answer].as_py() for answer in range(self.num_answers)]

    def source(self, example: int) -> str:
        """Where the example came from: "file:line"."""
        return str(self._sources[example].as_py())


def examples_digest(folder: Path, split: str) -> str:
    """Digest of the rows, labels and weights of a split, in order: equal for equal examples, wherever they were read."""
    table = ExampleTable.open(folder, split)
    marks = zip(table.labels.tolist(), table.weights.tolist(), strict=True)
    return digest_of([(table.row_keys(example), *mark) for example, mark in enumerate(marks)])


class _Lists:
    """A list column as one flat array and offsets: slicing copies nothing."""

    def __init__(self, column: pa.ChunkedArray | pa.ListArray) -> None:
        lists = _combined(column)
        self._offsets = _offsets(lists)
        self._values = lists.values.to_numpy(zero_copy_only=False)
        self.lengths = np.diff(self._offsets)

    def sums(self) -> np.ndarray:
        """Sum of each list: [n] int64."""
        totals = np.concatenate([[0], np.cumsum(self._values, dtype=np.int64)])
        found: np.ndarray = totals[self._offsets[1:]] - totals[self._offsets[:-1]]
        return found

    def __getitem__(self, index: int) -> np.ndarray:
        found: np.ndarray = self._values[self._offsets[index] : self._offsets[index + 1]]
        return found


def _with_masks(table: pa.Table) -> pa.Table:
    """A table without masks as one where every answer has none."""
    if "answer_masks" in table.column_names:
        return table
    field = MASKED_EXAMPLES.field("answer_masks")
    none = pa.array([[[]] * len(keys) for keys in table["row_keys"].to_pylist()], field.type)
    return table.append_column(field, none)


def _combined(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        return (
            column.chunk(0)
            if column.num_chunks == 1
            else pa.concat_arrays(column.chunks or [pa.array([], column.type)])
        )
    return column


def _offsets(lists: pa.ListArray) -> np.ndarray:
    found: np.ndarray = lists.offsets.to_numpy(zero_copy_only=False).astype(np.int64)
    return found


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
