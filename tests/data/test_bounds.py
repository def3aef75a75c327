"""What a file may ask for is bounded: bytes of a line, nesting, what a name may lead to."""

from __future__ import annotations

import gzip
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from raydpo.data import file_bytes
from raydpo.data.file_bytes import MOST_LINE_BYTES, byte_lines
from raydpo.data.json_list import list_items
from raydpo.data.read import file_rows
from raydpo.data.sources import find
from raydpo.errors import DataError

ROW = b'{"prompt": "a", "chosen": "b", "rejected": "c"}'


def rows_of(path: Path) -> list[Any]:
    return [line.row if line.bad is None else line.bad.reason for line in file_rows(path)]


@pytest.mark.parametrize("packed", [".gz", ".zst"])
def test_a_line_that_unpacks_to_more_than_a_row_may_hold_is_left_out(packed: str, tmp_path: Path) -> None:
    pack = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[packed]
    path = tmp_path / f"a.jsonl{packed}"
    path.write_bytes(pack(ROW + b"\n" + b"x" * (MOST_LINE_BYTES + 1) + b"\n" + ROW + b"\n"))
    assert path.stat().st_size < 1 << 20
    assert rows_of(path) == [json.loads(ROW), "too_large", json.loads(ROW)]
    (line,) = [line for line in file_rows(path) if line.bad is not None]
    assert line.sample() == "x" * 200


def test_each_byte_of_a_long_line_is_joined_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a line's length, what is kept of it is its pieces: joining at each of them took time by the square."""
    pieces = [b"x" * 100] * 1000 + [b"\ny"]
    joined: list[int] = []

    class Counted(file_bytes._Begun):
        def taken(self) -> bytes:
            joined.append(len(self.parts))
            return super().taken()

    monkeypatch.setattr(file_bytes, "_Begun", Counted)
    monkeypatch.setattr(file_bytes, "chunks", lambda path: iter(pieces))
    assert list(byte_lines(tmp_path / "a")) == [b"x" * 100_000, b"y"]
    assert joined == [1001, 1]


def test_zstandard_is_unpacked_in_small_pieces(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress(b"\n" * (200 << 20)))
    assert max(map(len, file_bytes.chunks(path))) <= MOST_LINE_BYTES


@pytest.mark.parametrize("depth", [99, 101, 900, 100_000])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_row_nested_beyond_reason_is_left_out(depth: int, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    deep = b'{"prompt": ' + b"[" * depth + b"]" * depth + b"}"
    path.write_bytes(b"[" + ROW + b"," + deep + b"," + ROW + b"]" if name.endswith("json") else deep + b"\n" + ROW)
    if name.endswith("json") and depth > 1000:
        with pytest.raises(DataError, match=r"after item 1 .*nested too deeply"):
            rows_of(path)
        return
    reasons = [one for one in rows_of(path) if isinstance(one, str)]
    assert reasons == ([] if depth < 100 else ["malformed_json"])


def test_the_last_of_a_million_keys_may_be_there_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    keys = ", ".join(f'"{index}": 1' for index in range(300_000))
    path.write_text("{" + keys + ', "299999": 2}\n')
    assert rows_of(path) == ["duplicate_key"]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    "text",
    ["[]", "[ 1 ]", '[1, 2.5e3, "é\\n", {"a": [1, {"b": null}]}, [], true]', ' [{"a": "' + "x" * 500 + '"}]\n'],
)
def test_items_of_a_list_are_those_of_the_whole_text(text: str, size: int) -> None:
    raw = text.encode()
    pieces = [raw[start : start + size] for start in range(0, len(raw), size)]
    assert [item for item, _ in list_items(pieces, 10_000)] == json.loads(text)


@pytest.mark.parametrize(
    "text", ["[", "[1", "[1,", "[1,]", "[1 2]", "[1] 2", "[,1]", '["a', "{}", "[1]]", "[\ufffe\xff]"]
)
@pytest.mark.parametrize("size", [1, 1000])
def test_what_is_no_list_is_refused(text: str, size: int) -> None:
    raw = text.encode("utf-8", "surrogatepass")
    pieces = [raw[start : start + size] for start in range(0, len(raw), size)]
    with pytest.raises(ValueError, match=r"\S"):
        list(list_items(pieces, 10_000))


def test_an_item_longer_than_may_be_is_refused_before_it_is_read_to_its_end() -> None:
    taken: list[int] = []

    def pieces() -> Any:
        yield b'["'
        for index in range(1000):
            taken.append(index)
            yield b"x" * 1000

    with pytest.raises(ValueError, match="more than 10,000 characters"):
        list(list_items(pieces(), 10_000))
    assert len(taken) < 50


def make_socket(path: Path) -> None:
    socket.socket(socket.AF_UNIX).bind(str(path))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (os.mkfifo, "is a FIFO"),
        (make_socket, "is a socket"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device"),
        (lambda path: path.symlink_to(path), "cannot be read|does not exist"),
        (lambda path: path.symlink_to("/nowhere"), "cannot be read|leads nowhere: to '/nowhere'"),
    ],
    ids=["fifo", "socket", "device", "loop", "dangling"],
)
@pytest.mark.parametrize("by", ["name", "folder", "pattern"])
def test_what_is_no_file_is_refused_by_name(
    make: Callable[[Path], None], says: str, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("a.jsonl"))
    name = {"name": "a.jsonl", "folder": ".", "pattern": "*.jsonl"}[by]
    found, problems = find("data.train", [name])
    assert not found
    (problem,) = problems
    assert "a.jsonl" in problem
    assert any(text in problem for text in says.split("|"))


def test_names_with_nul_are_refused() -> None:
    _, problems = find("data.train", ["a\0.jsonl", "b/*\0.jsonl"])
    assert len(problems) == 2
    assert all("NUL" in problem for problem in problems)


def test_a_link_to_the_folder_around_it_repeats_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(ROW)
    (tmp_path / "again").symlink_to(tmp_path)
    found, _ = find("data.train", [f"{tmp_path}/**/*.jsonl"])
    assert [one.name for one in found] == [str(tmp_path / "a.jsonl")]
