"""Token shards: what goes in comes out, by index; a shard that was tampered with is refused."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydpo.artifacts import ExampleTable, ExampleWriter, examples_digest
from raydpo.errors import IntegrityError
from tests.artifacts.golden import EXAMPLES, Example, examples_in


def write(folder: Path, split: str, examples: list[Example], examples_per_shard: int = 2) -> None:
    writer = ExampleWriter(folder, split, examples_per_shard)
    for example in examples:
        writer.add(*example)
    writer.close()


ids = st.lists(st.integers(0, 2**31 - 1), max_size=6)


@st.composite
def example_lists(draw: st.DrawFn) -> list[Example]:
    """Up to nine examples with the same number of answers, of any lengths, none among them."""
    num_answers = draw(st.integers(1, 3))
    answers = st.lists(ids, min_size=num_answers, max_size=num_answers)
    keys = st.lists(st.text("0123456789abcdef", min_size=32, max_size=32), min_size=num_answers, max_size=num_answers)
    return draw(st.lists(st.tuples(ids, answers, keys, st.text(max_size=9)), min_size=1, max_size=9))


@settings(max_examples=40, deadline=None)
@given(example_lists(), st.integers(1, 5))
def test_round_trip(examples: list[Example], examples_per_shard: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), "train", examples, examples_per_shard)
        table = ExampleTable.open(Path(folder), "train")
        assert len(table) == len(examples)
        assert examples_in(table) == examples
        assert table.prompt_lengths.tolist() == [len(prompt) for prompt, _, _, _ in examples]
        assert table.answer_lengths.tolist() == [[len(answer) for answer in answers] for _, answers, _, _ in examples]
        assert len(list(Path(folder).glob("train-0*.arrow"))) == -(-len(examples) // examples_per_shard)


def test_types_and_read_only_views(tmp_path: Path) -> None:
    write(tmp_path, "train", EXAMPLES)
    table = ExampleTable.open(tmp_path, "train")
    assert (table.prompt_lengths.dtype, table.answer_lengths.dtype) == (np.int32, np.int32)
    assert table.answer_lengths.shape == (5, 2)
    for array in (table.prompt_ids(3), *table.answer_ids(3)):
        assert array.dtype == np.int32
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_an_empty_split(tmp_path: Path) -> None:
    write(tmp_path, "eval", [])
    table = ExampleTable.open(tmp_path, "eval")
    assert len(table) == 0
    assert table.prompt_lengths.tolist() == []
    assert table.answer_lengths.shape == (0, 2)


def test_splits_do_not_touch_each_other(tmp_path: Path) -> None:
    write(tmp_path, "train", EXAMPLES)
    write(tmp_path, "eval", EXAMPLES[:1])
    write(tmp_path, "train", EXAMPLES[2:])
    assert examples_in(ExampleTable.open(tmp_path, "train")) == EXAMPLES[2:]
    assert examples_in(ExampleTable.open(tmp_path, "eval")) == EXAMPLES[:1]


def test_a_split_does_not_count_before_close(tmp_path: Path) -> None:
    write(tmp_path, "train", EXAMPLES)
    ExampleWriter(tmp_path, "train").add(*EXAMPLES[0])
    for split in ("train", "never"):
        with pytest.raises(IntegrityError, match=rf"{split}\.json is missing"):
            ExampleTable.open(tmp_path, split)


@pytest.mark.parametrize("name", ["train-00001", "train-columns"])
def test_any_byte_of_a_file(name: str, tmp_path: Path) -> None:
    write(tmp_path, "train", EXAMPLES)
    path = tmp_path / f"{name}.arrow"
    data, rng = path.read_bytes(), random.Random(0)
    versions = [data[:at] + bytes([data[at] ^ rng.randrange(1, 256)]) + data[at + 1 :] for at in range(0, len(data), 9)]
    for version in [*versions, b"", data[:-1], data[: len(data) // 2], data + b"\0"]:
        path.write_bytes(version)
        with pytest.raises(IntegrityError, match=rf"{name}\.arrow"):
            ExampleTable.open(tmp_path, "train").verify()
        with pytest.raises(IntegrityError, match=rf"{name}\.arrow"):
            ExampleTable.open(tmp_path, "train").prompt_ids(2)
    path.unlink()
    with pytest.raises(IntegrityError, match=rf"{name}\.arrow"):
        ExampleTable.open(tmp_path, "train").verify()


def test_any_byte_of_the_manifest(tmp_path: Path) -> None:
    write(tmp_path, "train", EXAMPLES)
    path = tmp_path / "train.json"
    data, rng = path.read_bytes(), random.Random(0)
    refused = 0
    for at in range(0, len(data), 2):
        changed = data[:at] + bytes([data[at] ^ rng.randrange(1, 256)]) + data[at + 1 :]
        path.write_bytes(changed)
        try:
            assert examples_in(ExampleTable.open(tmp_path, "train")) == EXAMPLES
            assert json.loads(changed) == json.loads(data)
        except IntegrityError:
            refused += 1
    assert refused > 150


def test_examples_with_different_numbers_of_answers_are_refused(tmp_path: Path) -> None:
    prompt, answers, keys, source = EXAMPLES[3]
    for size in (1, 2):
        with pytest.raises(IntegrityError, match="different numbers of answers"):
            write(tmp_path, "train", [EXAMPLES[2], (prompt, answers[:1], keys[:1], source)], size)


def test_answers_without_a_key_each_are_refused(tmp_path: Path) -> None:
    prompt, answers, keys, source = EXAMPLES[3]
    with pytest.raises(IntegrityError, match="different numbers of answers"):
        write(tmp_path, "train", [(prompt, answers, keys[:1], source)] * 2)


def test_the_digest_follows_content_and_order(tmp_path: Path) -> None:
    orders = {"same": EXAMPLES, "again": EXAMPLES, "reversed": EXAMPLES[::-1], "fewer": EXAMPLES[:4]}
    for split, examples in orders.items():
        write(tmp_path, split, examples)
    digests = {split: examples_digest(tmp_path, split) for split in orders}
    assert digests["same"] == digests["again"]
    assert len(set(digests.values())) == 3
