"""Files of every kind, changed at random: an error that names the file, or rows; never another exception, never a wrong number
where there is a checksum. RAYDPO_FUZZ is the number of changes of each kind (`make fuzz`: 10,000), RAYDPO_FUZZ_SEED the first.
"""

from __future__ import annotations

import gzip
import json
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zstandard

from raydpo.artifacts import commit_folder, read_commit, verify_folder
from raydpo.artifacts.examples import ExampleTable, ExampleWriter
from raydpo.config.load import load
from raydpo.data.read import file_rows
from raydpo.data.store import Store
from raydpo.errors import ConfigError, DataError, IntegrityError, RaydpoError
from raydpo.train.state_files import KINDS, Fragment, SavedState, write_state

NUM = int(os.environ.get("RAYDPO_FUZZ", "500"))
SEED = int(os.environ.get("RAYDPO_FUZZ_SEED", "0"))
CORPUS = Path(__file__).with_name("corpus")
ROWS = [{"prompt": f"p{index} é", "chosen": "yes " * index, "rejected": "no"} for index in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
YAML = b"""\
run:       {dir: runs/first, seed: 3}
model:     {path: some/model}
data:      {train: [pairs.jsonl.gz, {path: b.jsonl, passes: 2}], eval: [held_out.jsonl.gz]}
objective: {name: dpo, beta: 0.2}
reference: {cache_dir: ~/.cache/raydpo, num_workers: 2}
train:
  num_workers: 2
  learning_rate: 5e-7
  lora: {rank: 8}
"""
_NUMBERS = (
    b"\xff" * 4,
    b"\xff\xff\xff\x7f",
    b"\0\0\0\x80",
    b"\0" * 4,
    b"\1\0\0\0",
    b"[",
    b"{",
    b'"',
    b"&a *a",
    b"\n",
    b"\0",
)

T = TypeVar("T")


def outcome(read: Callable[[], T], refused: type[RaydpoError]) -> tuple[T | None, str]:
    """What `read` returns, or the text of the one error that it may raise."""
    try:
        return read(), ""
    except refused as error:
        return None, str(error)


def changed(draw: random.Random, data: bytes) -> bytes:
    """`data` with one to three changes: bits, numbers, pieces that are cut, moved or doubled, an end that is missing."""
    found = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        place, length = draw.randrange(len(found) + 1), draw.randint(1, 16)
        kind = draw.randrange(7)
        if kind <= 1 and found:
            found[place % len(found)] ^= 1 << draw.randrange(8)
        elif kind == 2:
            del found[place:]
        elif kind == 3:
            del found[place : place + length]
        elif kind == 4:
            number = draw.choice(_NUMBERS)
            found[place : place + len(number)] = number
        elif kind == 5:
            start = draw.randrange(len(found) + 1)
            found[place:place] = found[start : start + 4 * length]
        else:
            found[place : place + length] = draw.randbytes(length)
    return bytes(found)


def table() -> pa.Table:
    return pa.Table.from_pylist([{**row, "messages": [{"role": "user", "content": row["prompt"]}]} for row in ROWS])


def arrow(*, stream: bool) -> bytes:
    sink = pa.BufferOutputStream()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table().schema) as writer:
        writer.write_table(table())
    return sink.getvalue().to_pybytes()


def parquet(**more: object) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table(), sink, **more)
    return sink.getvalue().to_pybytes()


BASES: dict[str, Callable[[], bytes]] = {
    "a.arrow": lambda: arrow(stream=False),
    "b.arrow": lambda: arrow(stream=True),
    "c.parquet": parquet,
    "d.jsonl": lambda: LINES,
    "e.json": lambda: json.dumps(ROWS).encode(),
    "f.csv": lambda: b"prompt,chosen,rejected\na,b,c\n" * 3,
    "g.jsonl.gz": lambda: gzip.compress(LINES),
    "h.jsonl.zst": lambda: zstandard.ZstdCompressor(write_checksum=True).compress(LINES),
}
CHECKED = ("g.jsonl.gz", "h.jsonl.zst")
"""Kinds with a checksum over all that is read."""


def trial(number: int) -> random.Random:
    return random.Random(f"{SEED} {number}")


def rows_of(path: Path) -> list[Any]:
    return [line.row for line in file_rows(path)]


@pytest.mark.parametrize("name", BASES)
def test_any_change_of_a_data_file_is_an_error_or_rows(name: str, tmp_path: Path) -> None:
    path, whole, seen = tmp_path / name, BASES[name](), Counter[str]()
    path.write_bytes(whole)
    rows = rows_of(path)
    for number in range(NUM):
        path.write_bytes(changed(trial(number), whole))
        found, said = outcome(lambda: rows_of(path), DataError)
        seen["refused" if said else "read"] += 1
        if said:
            assert name in said, number
        elif name in CHECKED:
            assert found in (rows, []), number  # nothing at all: another file's beginning, or none
    assert seen["refused"] > NUM // 20 or name in ("d.jsonl", "f.csv")
    print(name, dict(seen))


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.name)
def test_what_crashed_once_is_refused_or_read(path: Path) -> None:
    found, said = outcome(lambda: rows_of(path), DataError)
    assert path.name in said if found is None else len(found) <= 3


def test_any_change_of_a_manifest_is_noticed(tmp_path: Path) -> None:
    staging, final = tmp_path / "staging", tmp_path / "step-000001"
    staging.mkdir()
    (staging / "state").write_bytes(b"state")
    commit_folder(staging, final, {"step": 1, "metrics": {"loss": 0.5}})
    whole, body = (final / "COMMIT.json").read_bytes(), read_commit(final)
    for number in range(NUM):
        (final / "COMMIT.json").write_bytes(changed(trial(number), whole))
        found, said = outcome(lambda: read_commit(final), IntegrityError)
        assert (bool(said) and verify_folder(final)) or found == body, number


def test_any_change_of_a_training_state_is_noticed_and_its_reader_says_what_is_wrong(tmp_path: Path) -> None:
    """The manifest has the checksum; whoever reads without it may find other values, and no other names or shapes."""
    staging, final, seen = tmp_path / "staging", tmp_path / "step-000001", Counter[str]()
    fragments = [state_fragment("norm", 4), state_fragment("layers.0.weight", 6)]
    write_state(staging / "engine", fragments, 0, 1)
    commit_folder(staging, final, {"step": 1})
    path = final / "engine/rank-00000.safetensors"
    whole = path.read_bytes()
    wanted = {each.name: each.shape for each in fragments}
    for number in range(NUM):
        path.write_bytes(found := changed(trial(number), whole))
        assert verify_folder(final) or found == whole, number
        saved = SavedState(path.parent)
        said = saved.problems or saved.misfits(wanted) or saved.fill([each.copied() for each in fragments])
        assert said or saved.shapes == wanted, number
        seen["refused" if said else "read"] += 1
    assert seen["refused"] > NUM // 2
    print("training state", dict(seen))


def state_fragment(name: str, length: int) -> Fragment:
    return Fragment(name, (length,), 0, torch.tensor(3.0), {kind: torch.arange(length) + 0.5 for kind in KINDS})


def test_any_change_of_prepared_shards_and_their_records_is_noticed(tmp_path: Path) -> None:
    writer = ExampleWriter(tmp_path, "train")
    for index in range(3):
        writer.add([1, 2, index], [[3], [4, 5]], [f"{index:032d}", f"{index + 9:032d}"], f"a:{index}")
    writer.close()
    paths = sorted(path for path in tmp_path.iterdir() if path.is_file())
    whole = {path: path.read_bytes() for path in paths}
    expected = digest_of_table(tmp_path)
    for number in range(NUM):
        draw = trial(number)
        path = draw.choice(paths)
        path.write_bytes(changed(draw, whole[path]))
        found, said = outcome(lambda: digest_of_table(tmp_path), IntegrityError)
        assert str(tmp_path) in said or found == expected or path.suffix == ".json", (number, path)
        path.write_bytes(whole[path])


def digest_of_table(folder: Path) -> list[object]:
    """Everything that training reads of a split."""
    found = ExampleTable.open(folder, "train")
    return [(found.row_keys(index), found.source(index)) for index in range(len(found))]


def test_any_change_of_a_record_of_preparation_is_noticed(tmp_path: Path) -> None:
    store = Store(tmp_path, "digest")
    store.begin()
    store.finish({"train_pairs": 0, "eval_pairs": 0, "entries": {}})
    report = store.finished()
    assert report is not None
    path = tmp_path / "prepared.json"
    whole = path.read_bytes()
    for number in range(NUM):
        path.write_bytes(changed(trial(number), whole))
        assert store.finished() in (None, report), number


def test_any_change_of_a_config_is_a_config_or_its_error(tmp_path: Path) -> None:
    path, seen = tmp_path / "run.yaml", Counter[str]()
    for number in range(NUM):
        path.write_bytes(changed(trial(number), YAML))
        _, said = outcome(lambda: load(path), ConfigError)
        assert not said or all("run.yaml" in problem for problem in said.splitlines()), (number, said)
        seen["refused" if said else "read"] += 1
    assert seen["read"] > NUM // 50
    print("config", dict(seen))
