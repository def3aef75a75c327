"""A split whose shards are opened when they are read: only these are verified, and damage is found before it is used."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from raydpo.artifacts import ExampleTable, ExampleWriter
from raydpo.artifacts.arrow import ShardRecord
from raydpo.artifacts.example_columns import ExampleColumns, joined, read_columns, write_columns
from raydpo.artifacts.lazy_chunks import LazyChunks
from raydpo.errors import IntegrityError

SIZE, NUM_SHARDS = 3, 5


@pytest.fixture(params=[False, True], ids=["plain", "masked"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Five shards of three examples; with a mask in one of them."""
    writer = ExampleWriter(tmp_path, "train", SIZE)
    for n in range(SIZE * NUM_SHARDS):
        masks = [[True, False] + [True] * n, None] if request.param and n == 7 else ()
        ids = [[n] * (n + 2), [n, n]]
        keys = [f"{n:032x}", f"{n + 99:032x}"]
        writer.add([1] * (n + 1), ids, keys, f"pairs.jsonl:{n}", n % 2 == 0, 0.5 + n, answer_masks=masks)
    writer.close()
    return tmp_path


def num_opened(table: ExampleTable) -> int:
    chunks = table._chunks
    assert isinstance(chunks, LazyChunks)
    return chunks.num_opened


def test_lengths_labels_and_weights_open_no_shard(folder: Path) -> None:
    table = ExampleTable.open(folder, "train")
    number = SIZE * NUM_SHARDS
    assert table.prompt_lengths.tolist() == [n + 1 for n in range(number)]
    assert table.answer_lengths.tolist() == [[n + 2, 2] for n in range(number)]
    assert table.labels.tolist() == [n % 2 == 0 for n in range(number)]
    assert table.weights.tolist() == [0.5 + n for n in range(number)]
    masked = {7: 8} if table.loss_lengths is not table.answer_lengths else {}
    assert table.loss_lengths[:, 0].tolist() == [masked.get(n, n + 2) for n in range(number)]
    assert num_opened(table) == 0
    assert [table.prompt_ids(n).tolist() for n in (4, 13, 3)] == [[1] * 5, [1] * 14, [1] * 4]
    assert num_opened(table) == 2
    assert [n for n in range(number) if table.answer_ids(n)[0].tolist() != [n] * (n + 2)] == []
    assert num_opened(table) == NUM_SHARDS


def test_a_rank_has_no_lengths_of_its_own(folder: Path) -> None:
    table = ExampleTable.open(folder, "train")
    for name in ("prompt_lengths", "answer_lengths", "loss_lengths", "labels", "weights"):
        array: np.ndarray = getattr(table, name)
        assert not array.flags.owndata, name
        assert not array.flags.writeable, name


def test_damage_is_found_by_who_reads_it_and_by_no_other(folder: Path) -> None:
    path = folder / "train-00002.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    table = ExampleTable.open(folder, "train")
    assert table.answer_ids(5)[1].tolist() == [5, 5]
    for _ in range(2):
        with pytest.raises(IntegrityError, match=r"train-00002\.arrow differs from what was committed"):
            table.answer_ids(6)
    with pytest.raises(IntegrityError, match=r"train-00002\.arrow differs"):
        table.verify()


def test_a_shard_with_other_lengths_than_were_committed_is_refused(folder: Path) -> None:
    """As a manifest would have it that was put together from two preparations."""
    manifest = json.loads((folder / "train.json").read_text())
    manifest["shards"][1], manifest["shards"][3] = manifest["shards"][3], manifest["shards"][1]
    (folder / "train.json").write_text(json.dumps(manifest))
    table = ExampleTable.open(folder, "train")
    assert table.prompt_ids(0).tolist() == [1]
    with pytest.raises(IntegrityError, match=r"train-00003\.arrow is not the shard"):
        table.prompt_ids(SIZE)


def test_a_manifest_of_fewer_shards_than_columns_is_refused(folder: Path) -> None:
    manifest = json.loads((folder / "train.json").read_text())
    del manifest["shards"][-1]
    (folder / "train.json").write_text(json.dumps(manifest))
    with pytest.raises(IntegrityError, match="says 12 examples, and 15"):
        ExampleTable.open(folder, "train")


def test_a_split_of_before_there_were_columns_is_verified_when_it_is_opened(folder: Path) -> None:
    manifest = json.loads((folder / "train.json").read_text())
    whole = ExampleTable.open(folder, "train")
    del manifest["columns"]
    (folder / "train.json").write_text(json.dumps(manifest))
    table = ExampleTable.open(folder, "train")
    for name in ("prompt_lengths", "answer_lengths", "loss_lengths", "labels", "weights"):
        assert np.array_equal(getattr(table, name), getattr(whole, name)), name
    (folder / "train-00004.arrow").write_bytes(b"")
    with pytest.raises(IntegrityError, match=r"train-00004\.arrow"):
        ExampleTable.open(folder, "train")


def test_shards_may_be_named_from_another_folder_than_they_are_read_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(folder.parent)
    table = ExampleTable.open(Path(folder.name), "train")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert table.prompt_ids(4).tolist() == [1] * 5
    shutil.rmtree(folder)
    assert table.prompt_ids(3).tolist() == [1] * 4, "what is mapped stays"
    with pytest.raises(IntegrityError, match="cannot be read"):
        table.prompt_ids(0)


def test_more_tokens_than_32_bits_count_in_the_files_of_a_split(tmp_path: Path) -> None:
    """One planted shard of four million tokens stands in the manifest again and again, as often as it takes."""
    tokens, pairs, times = 1 << 20, 2, 1025
    writer = ExampleWriter(tmp_path, "train", pairs)
    for n in range(pairs):
        writer.add([n], [np.full(tokens, n, np.int32), [n, n, 7]], [f"{n:032x}", f"{n + 9:032x}"], f"pairs.jsonl:{n}")
    writer.close()
    manifest = json.loads((tmp_path / "train.json").read_text())
    once = read_columns(tmp_path / "train-columns.arrow", ShardRecord(**manifest["columns"]["file"]), 2)
    again = write_columns(tmp_path / "train-columns.arrow", joined([once] * times))
    manifest = {"shards": manifest["shards"] * times, "columns": {"num_answers": 2, "file": asdict(again)}}
    (tmp_path / "train.json").write_text(json.dumps(manifest))
    table = ExampleTable.open(tmp_path, "train")
    last = pairs * times - 1
    assert (len(table), int(table.answer_lengths.sum(dtype=np.int64)) > 2**31) == (last + 1, True)
    assert [ids.tolist() for ids in (table.prompt_ids(last), table.answer_ids(last)[1])] == [[1], [1, 1, 7]]
    assert table.answer_ids(last)[0][[0, -1]].tolist() == [1, 1]
    assert table.row_keys(last - 1) == [f"{0:032x}", f"{9:032x}"]
    assert num_opened(table) == 1


def test_columns_come_back_as_they_were_written(tmp_path: Path) -> None:
    answers = np.array([[3], [0], [2**31 - 1]], np.int32)
    found = ExampleColumns(
        np.array([1, 2, 3], np.int32),
        answers,
        answers,
        np.array([True, False, True]),
        np.array([1, 0.1, 7], np.float32),
    )
    back = read_columns(tmp_path / "c.arrow", write_columns(tmp_path / "c.arrow", found), 1)
    for name in ("prompt_lengths", "answer_lengths", "loss_lengths", "labels", "weights"):
        one, other = getattr(found, name), getattr(back, name)
        assert (one.tolist(), one.dtype) == (other.tolist(), other.dtype), name
    assert back.loss_lengths is back.answer_lengths
