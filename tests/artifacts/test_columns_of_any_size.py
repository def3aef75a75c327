"""A split of any number of tokens is a view of its files: nothing is joined, and no process has tokens of its own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raydpo.artifacts import ExampleTable, ExampleWriter, digest_of, examples_digest
from raydpo.artifacts.arrow import ShardRecord, read_shard
from raydpo.errors import IntegrityError
from raydpo.schema.rows import EXAMPLES, MASKED_EXAMPLES

ANSWER_TOKENS = 1 << 19


def shard_of(folder: Path, num_examples: int, answer_tokens: int, *, is_masked: bool = False) -> pa.Table:
    """A mapped shard of pairs; the tokens of each answer count up from the number of its example."""
    writer = ExampleWriter(folder, "train", examples_per_shard=num_examples)
    for example in range(num_examples):
        ids = np.arange(example, example + answer_tokens, dtype=np.int32)
        masks = [np.arange(answer_tokens) % 2 == 0, None] if is_masked else ()
        keys = [f"{example:032x}", f"{example + 1000:032x}"]
        writer.add([example], [ids, ids[:7]], keys, f"pairs.jsonl:{example + 1}", answer_masks=masks)
    writer.close()
    (record,) = json.loads((folder / "train.json").read_text())["shards"]
    return read_shard(folder / record["name"], ShardRecord(**record), EXAMPLES, MASKED_EXAMPLES)


def test_more_tokens_than_32_bits_count(tmp_path: Path) -> None:
    shard, before = shard_of(tmp_path, 2, ANSWER_TOKENS), pa.total_allocated_bytes()
    num_shards = 2**31 // (2 * ANSWER_TOKENS) + 2
    table = ExampleTable([shard] * num_shards)
    assert int(table.answer_lengths.sum(dtype=np.int64)) > 2**31
    assert len(table) == 2 * num_shards
    last = 2 * num_shards - 1
    assert table.answer_ids(last)[0][[0, -1]].tolist() == [1, ANSWER_TOKENS]
    assert table.answer_ids(last)[1].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert (table.prompt_ids(last).tolist(), table.source(last)) == ([1], "pairs.jsonl:2")
    assert table.row_keys(last) == [f"{1:032x}", f"{1001:032x}"]
    assert table.answer_lengths[last].tolist() == [ANSWER_TOKENS, 7]
    assert pa.total_allocated_bytes() == before, "tokens are where the files are"


@pytest.mark.parametrize("is_masked", [False, True], ids=["plain", "masked"])
def test_the_memory_of_a_process_does_not_grow_with_shards(is_masked: bool, tmp_path: Path) -> None:
    shard = shard_of(tmp_path, 8, 5000, is_masked=is_masked)
    private = {}
    for num_shards in (1, 64):
        before = pa.total_allocated_bytes()
        table = ExampleTable([shard] * num_shards)
        views = [
            ids for example in range(len(table)) for ids in (table.prompt_ids(example), *table.answer_ids(example))
        ]
        assert all(not array.flags.owndata for array in views)
        own = (table.prompt_lengths, table.answer_lengths, table.loss_lengths, table.labels, table.weights)
        in_numpy = sum(array.nbytes for array in {id(array): array for array in own}.values() if array.flags.owndata)
        private[num_shards] = (pa.total_allocated_bytes() - before, in_numpy / len(table))
    assert private[1] == private[64]
    assert private[64] == (0, 4 + 8 + 1 + 8 * is_masked), "bytes an example, of 40,000 that it has on the disk"


def test_masks_count_in_every_chunk(tmp_path: Path) -> None:
    masked, plain = shard_of(tmp_path / "a", 3, 10, is_masked=True), shard_of(tmp_path / "b", 3, 10)
    table = ExampleTable([plain, masked, plain.slice(1), masked.slice(2)])
    assert table.loss_lengths.tolist() == [[10, 7]] * 3 + [[5, 7]] * 3 + [[10, 7]] * 2 + [[5, 7]]
    (first, second), (none, nothing) = table.answer_masks(8), table.answer_masks(7)
    assert (second, none, nothing) == (None, None, None)
    assert first is not None
    assert first.tolist() == [True, False] * 5
    assert [table.prompt_ids(example).tolist() for example in (6, 7, 8)] == [[1], [2], [2]]
    assert table.row_keys(8) == [f"{2:032x}", f"{1002:032x}"]
    assert [key.tolist() for chunk in table.chunks() for key in chunk.key_bytes()][8] == [
        key.encode() for key in table.row_keys(8)
    ]


def test_an_example_that_is_not_there_is_refused(tmp_path: Path) -> None:
    table = ExampleTable([shard_of(tmp_path, 2, 3)] * 2)
    for example in (-1, 4):
        with pytest.raises(IndexError, match=f"example {example} of 4"):
            table.prompt_ids(example)


def test_chunks_with_another_number_of_answers_are_refused(tmp_path: Path) -> None:
    pairs = shard_of(tmp_path, 2, 3)
    answers, keys = [[[1]]] * 2, [["k" * 32]] * 2
    columns = {"answer_ids": answers, "row_keys": keys}
    of_one = pa.table({name: columns.get(name, pairs[name]) for name in EXAMPLES.names}, schema=EXAMPLES)
    with pytest.raises(IntegrityError, match="different numbers of answers"):
        ExampleTable([pairs, of_one])


def test_the_digest_is_that_of_the_whole_list(tmp_path: Path) -> None:
    writer = ExampleWriter(tmp_path, "train", examples_per_shard=2)
    rows = [([f"{n:032x}", f"{n + 9:032x}"], n % 2 == 0, 0.5 + n) for n in range(5)]
    for keys, label, weight in rows:
        writer.add([1], [[2], [3]], keys, "é", label, weight)
    writer.close()
    ExampleWriter(tmp_path, "eval").close()
    assert examples_digest(tmp_path, "train") == digest_of(rows)
    assert examples_digest(tmp_path, "eval") == digest_of([])


def test_bytes_that_arrow_cannot_read_are_named(tmp_path: Path) -> None:
    """Such an error of Arrow is a ValueError, and was taken for a preparation that is not there."""
    path, data = tmp_path / "train-00000.arrow", b"no Arrow file, and committed so"
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="cannot be read as Arrow"):
        read_shard(path, ShardRecord(path.name, 1, len(data), hashlib.sha256(data).hexdigest()), EXAMPLES)
