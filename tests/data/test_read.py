"""Every container gives the same rows; damage to a file is an error, damage to a line is not."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from raydpo.data.read import file_rows, parse_line
from raydpo.data.sources import find, find_parts
from raydpo.errors import DataError

ROWS: list[dict[str, Any]] = [
    {"prompt": f"p{index}\u2028\u0085", "chosen": f" c{index}", "rejected": f" r{index}"} for index in range(3000)
]


def lines_of(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def written(folder: Path) -> dict[str, Path]:
    """The same rows in every container."""
    table = pa.Table.from_pylist(ROWS)
    paths = {
        name: folder / name
        for name in (
            "a.jsonl",
            "b.jsonl.gz",
            "c.jsonl.zst",
            "d.parquet",
            "e.arrow",
            "f.arrow",
            "g.json",
            "h.json",
            "i.ndjson",
            "j.json.gz",
        )
    }
    lines = lines_of(ROWS)
    paths["a.jsonl"].write_bytes(lines[:-1])
    half = len(lines) // 2
    paths["b.jsonl.gz"].write_bytes(gzip.compress(lines[:half]) + gzip.compress(lines[half:]))
    packer = zstandard.ZstdCompressor()
    paths["c.jsonl.zst"].write_bytes(packer.compress(lines[:half]) + packer.compress(lines[half:]))
    pq.write_table(table, paths["d.parquet"], row_group_size=700)
    with pa.ipc.new_file(paths["e.arrow"], table.schema) as writer:
        writer.write_table(table, max_chunksize=700)
    with pa.ipc.new_stream(paths["f.arrow"], table.schema) as writer:
        writer.write_table(table, max_chunksize=700)
    paths["g.json"].write_text(json.dumps(ROWS))
    paths["h.json"].write_bytes(lines)
    paths["i.ndjson"].write_bytes(b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n"))
    paths["j.json.gz"].write_bytes(gzip.compress(json.dumps(ROWS).encode()))
    return paths


def test_every_container_gives_the_same_rows(tmp_path: Path) -> None:
    for name, path in written(tmp_path).items():
        found = list(file_rows(path))
        assert [line.row for line in found] == ROWS, name
        assert [line.number for line in found] == list(range(1, len(ROWS) + 1)), name


def test_save_to_disk_folders_give_the_same_rows(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    (source,), problems = find("data.train", [str(tmp_path / "one")])
    assert not problems
    assert [line.row for line in source.rows()] == ROWS
    before = source.digest()
    Dataset.from_list(ROWS[:-1]).save_to_disk(tmp_path / "one")
    assert source.digest() != before
    DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "two")
    found = find_parts("data.train", [str(tmp_path / "two")])
    assert [Path(one.name).name for one in found.sources] == ["train"]
    assert [Path(one.name).name for one in found.held_out] == ["test"]
    assert len(find("data.train", [str(tmp_path / "two" / "train")])[0]) == 1


@pytest.mark.parametrize(
    "name", ["b.jsonl.gz", "c.jsonl.zst", "d.parquet", "e.arrow", "f.arrow", "g.json", "j.json.gz"]
)
def test_a_file_cut_short_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    path = written(tmp_path)[name]
    whole = path.read_bytes()
    for size in (len(whole) - 1, len(whole) - 9, len(whole) * 3 // 4):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=name):
            list(file_rows(path))


def test_an_arrow_stream_cut_between_batches_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path)["f.arrow"]
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(DataError, match="end mark"):
        list(file_rows(path))


def test_a_flipped_byte_in_compressed_data_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path)["b.jsonl.gz"]
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    path.write_bytes(whole)
    with pytest.raises(DataError, match="cannot be read after line"):
        list(file_rows(path))


def test_text_that_is_not_utf8_in_a_column_spoils_one_row(tmp_path: Path) -> None:
    raw = pa.array([b"good", b"bad \xff", b"fine"], pa.binary())
    text = pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])
    pq.write_table(pa.table({"prompt": text}), tmp_path / "x.parquet")
    found = list(file_rows(tmp_path / "x.parquet"))
    assert [line.bad.reason if line.bad else line.row for line in found] == [
        {"prompt": "good"},
        "invalid_utf8",
        {"prompt": "fine"},
    ]


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": "\xe2\x80\xa8\xc2\x85"}\n\n{"a": "\x0b"}\n{"a": 1}')
    found = [(line.number, line.bad.reason if line.bad else "good") for line in file_rows(path)]
    assert found == [(1, "good"), (2, "blank_line"), (3, "malformed_json"), (4, "good")]


def test_lines_longer_than_a_read_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    rows = [{"a": "x" * 3_000_000}, {"a": "y"}, {"a": "z" * (1 << 20)}]
    path.write_bytes(lines_of(rows))
    assert [line.row for line in file_rows(path)] == rows


def test_surrogate_pairs_are_joined_and_a_byte_order_mark_is_dropped() -> None:
    assert parse_line(5, b'{"a": "\\ud83d\\ude00"}').row == {"a": "\U0001f600"}
    assert parse_line(1, b'\xef\xbb\xbf{"a": 1}').row == {"a": 1}
    assert parse_line(2, b'\xef\xbb\xbf{"a": 1}').row == {"a": 1}, "of files that were joined"


def test_globs_and_folders_are_sorted_and_skip_other_files(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "README.md"):
        (tmp_path / name).write_text("{}\n")
    for spec in (str(tmp_path), str(tmp_path / "*")):
        sources, problems = find("data.train", [spec])
        assert not problems
        assert [Path(source.name).name for source in sources] == ["a.jsonl", "b.jsonl"]


def test_nulls_that_a_schema_makes_are_no_values(tmp_path: Path) -> None:
    """A schema fills a nested field that a row lacks with null; a line of JSON may mean the one it has."""
    rows = [{"call": [{"city": "Paris", "more": {"a": 1}}]}, {"call": [{"zone": None, "more": {"b": [None, 2]}}]}]
    (tmp_path / "lines.jsonl").write_bytes(lines_of(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "one.parquet")
    sources, problems = find("data.train", [str(tmp_path / name) for name in ("lines.jsonl", "one.parquet")])
    assert not problems
    assert [line.row for line in sources[0].rows()] == rows
    assert [line.row for line in sources[1].rows()] == [rows[0], {"call": [{"more": {"b": [None, 2]}}]}]


def test_all_names_that_find_nothing_are_reported_together(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    names = ["absent.jsonl", "none-*.jsonl", str(tmp_path / "x.txt"), str(tmp_path / "empty"), "hub:nobody"]
    sources, problems = find("data.eval", names)
    assert not sources
    assert len(problems) == 5
    assert all(problem.startswith("data.eval: ") for problem in problems)


def test_hub_ids_are_taken_apart() -> None:
    names = ["hub:org/set@refs/pr/1:test_prefs", "hub:org/set", "hub:org/set/config@v1.0:train[:10%]"]
    sources, problems = find("data.train", names)
    assert not problems
    parts = [(one.id, one.config, one.revision, one.split) for one in sources]  # type: ignore[union-attr]
    assert parts == [
        ("org/set", None, "refs/pr/1", "test_prefs"),
        ("org/set", None, None, "train"),
        ("org/set", "config", "v1.0", "train[:10%]"),
    ]


def test_a_hub_set_that_cannot_be_had_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (source,), _ = find("data.train", ["hub:nobody-at-all/nothing-there@main:train"])
    with pytest.raises(DataError, match="hub:nobody-at-all/nothing-there"):
        source.digest()
