"""Shards with answer masks, and those that were written before there were any."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raydpo.artifacts import ExampleTable, ExampleWriter, examples_digest
from raydpo.artifacts.arrow import write_shard
from raydpo.errors import IntegrityError
from raydpo.schema.rows import row_key
from tests.tables import write_examples

BEFORE = pa.schema(
    [
        pa.field("prompt_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("answer_ids", pa.list_(pa.list_(pa.int32())), nullable=False),
        pa.field("row_keys", pa.list_(pa.string()), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("label", pa.bool_(), nullable=False),
        pa.field("weight", pa.float32(), nullable=False),
    ]
)
"""The columns of a shard before there were masks, spelled out: a change of them would lose what is on people's disks."""
EXAMPLES = [([1, 5], [[7, 8, 2], [9, 2]]), ([1], [[2], [7, 2]])]
MASK = [True, False, True]


def write_before(folder: Path) -> str:
    """What an earlier version wrote for EXAMPLES; the hash of its shard."""
    rows = [
        {
            "prompt_ids": prompt,
            "answer_ids": answers,
            "row_keys": [row_key(prompt, answer) for answer in answers],
            "source": f"pairs.jsonl:{number}",
            "label": True,
            "weight": 1.0,
        }
        for number, (prompt, answers) in enumerate(EXAMPLES, start=1)
    ]
    folder.mkdir()
    record = write_shard(folder / "train-00000.arrow", pa.Table.from_pylist(rows, schema=BEFORE))
    (folder / "train.json").write_text(json.dumps({"shards": [asdict(record)]}))
    return record.sha256


def test_keys_of_rows_without_a_mask_are_those_of_ever() -> None:
    golden = {
        "f4f8bde799c085f95fa31ab71d98dc4f": ([1, 5, 6], [7, 8, 2]),
        "1dfed7092fa50e3bbfa04bd53f5b91be": ([1, 5, 6, 7], [8, 2]),
        "c0ca66c63e97a1b3d3a84dc8d27d48fa": ([1], []),
    }
    for key, (prompt, answer) in golden.items():
        assert row_key(prompt, answer) == key
        assert row_key(prompt, answer, None) == key
        assert row_key(prompt, answer, [True] * len(answer)) == key, "a mask that covers everything is none"


def test_a_mask_is_part_of_the_key() -> None:
    marks = [[True, False, True], [True, True, False], [False, False, True], None]
    keys = [row_key([1, 5, 6], [7, 8, 2], mask) for mask in marks]
    assert keys[0] == "19be99fc8ae5af277d9a4d734d61abdd", "a key of today is one of tomorrow"
    assert len(set(keys)) == len(marks)
    assert row_key([1, 5, 6], [7, 8, 2], np.array(marks[0])) == keys[0]
    assert row_key([1, 5], [6, 7, 8, 2], [True, True, False, True]) != keys[0]
    with pytest.raises(AssertionError, match="2 marks for 3 tokens"):
        row_key([1], [7, 8, 2], [True, False])


def test_shards_from_before_there_were_masks_open(tmp_path: Path) -> None:
    write_before(tmp_path / "old")
    table = ExampleTable.open(tmp_path / "old", "train")
    assert [ids.tolist() for ids in table.answer_ids(0)] == EXAMPLES[0][1]
    assert table.answer_masks(0) == [None, None]
    assert table.loss_lengths.tolist() == table.answer_lengths.tolist() == [[3, 2], [1, 2]]


def test_without_a_mask_nothing_that_is_written_changes(tmp_path: Path) -> None:
    sha256 = write_before(tmp_path / "old")
    for name, masks in (("none", ()), ("all none", [[None, None]] * 2)):
        write_examples(tmp_path / name, EXAMPLES, masks=masks)
        (record,) = json.loads((tmp_path / name / "train.json").read_text())["shards"]
        assert record["sha256"] == sha256
    assert examples_digest(tmp_path / "old", "train") == examples_digest(tmp_path / "none", "train")


def test_a_mask_changes_the_digest_of_the_examples(tmp_path: Path) -> None:
    for name, mask in (("one", MASK), ("other", [True, True, False]), ("none", None)):
        write_examples(tmp_path / name, EXAMPLES, masks=[[mask, None], [None, None]])
    assert len({examples_digest(tmp_path / name, "train") for name in ("one", "other", "none")}) == 3


def test_old_and_new_shards_are_one_table(tmp_path: Path) -> None:
    write_before(tmp_path / "data")
    (old,) = json.loads((tmp_path / "data" / "train.json").read_text())["shards"]
    write_examples(tmp_path / "new", EXAMPLES, masks=[[MASK, None], [None, [False, True]]])
    (new,) = json.loads((tmp_path / "new" / "train.json").read_text())["shards"]
    (tmp_path / "new" / new["name"]).rename(tmp_path / "data" / "train-00001.arrow")
    records = [old, {**new, "name": "train-00001.arrow"}]
    (tmp_path / "data" / "train.json").write_text(json.dumps({"shards": records}))
    table = ExampleTable.open(tmp_path / "data", "train")
    assert table.loss_lengths.tolist() == [[3, 2], [1, 2], [2, 2], [1, 1]]
    assert table.answer_masks(1) == [None, None]
    (first, none), (nothing, second) = table.answer_masks(2), table.answer_masks(3)
    assert (none, nothing) == (None, None)
    assert first is not None
    assert second is not None
    assert (first.tolist(), first.dtype, second.tolist()) == (MASK, np.bool_, [False, True])


def test_a_mask_of_another_length_is_refused(tmp_path: Path) -> None:
    writer = ExampleWriter(tmp_path, "train")
    writer.add([1], [[7, 8, 2]], ["k" * 32], "pairs.jsonl:1", answer_masks=[[True, False]])
    with pytest.raises(IntegrityError, match="mask of another length"):
        writer.close()
