"""CSV and TSV, causes that spoil a whole file, and messages without content."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from raydpo.data.bad_rows import BadRow
from raydpo.data.formats import FORMATS, detect
from raydpo.data.read import file_rows
from raydpo.data.sources import find
from raydpo.errors import DataError
from tests.data.conftest import Run, write_jsonl

PAIR = {"prompt": "the sky is", "chosen": " blue", "rejected": " green"}


def rows_of(path: Path) -> list[Any]:
    return [line.row if line.bad is None else line.bad.reason for line in file_rows(path)]


def test_cells_are_text_and_empty_ones_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        '\ufeffprompt,chosen,rejected,n\r\n"a, ""b""\nc",é,d,1\r\n,x,y,\r\n,,,\nq,\u2028,z,2\n1,2\n'.encode()
        + b"\xff,a,b,c\n"
    )
    found = rows_of(path)
    assert found[0] == {"prompt": 'a, "b"\nc', "chosen": "é", "rejected": "d", "n": "1"}
    assert found[1] == {"prompt": None, "chosen": "x", "rejected": "y", "n": None}
    assert found[2] == "blank_line"
    assert found[3] == {"prompt": "q", "chosen": "\u2028", "rejected": "z", "n": "2"}
    assert found[4:] == ["malformed_csv", "invalid_utf8"]


@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.gz"])
def test_tsv_and_jsonl_give_the_same_ids(name: str, run: Run, plain_tokenizer: Path, tmp_path: Path) -> None:
    path, text = tmp_path / name, b"prompt\tchosen\trejected\nthe sky is\t blue\t green\n"
    path.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    assert [type(one).__name__ for one in find("data.train", [str(path)])[0]] == ["FileSource"]
    expected = [one[:2] for one in run([PAIR], plain_tokenizer).examples()]
    assert [one[:2] for one in run([], plain_tokenizer, train=[str(path)]).examples()] == expected


@pytest.mark.parametrize("text", ["", "a,a\n1,2\n", "a,\n1,2\n", 'a,b\n1,"2\n', "a\n\x001"])
def test_a_file_of_cells_that_cannot_be_told_apart_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    if "\x00" in text:
        assert rows_of(path) == [{"a": "\x001"}]  # the NUL is refused with its row, where text is asked for
        return
    with pytest.raises(DataError, match=r"a\.csv"):
        rows_of(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_text_of_another_width_is_named(encoding: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(json.dumps(PAIR).encode(encoding))
    with pytest.raises(DataError, match=r"is UTF-(16|32) text.*iconv -f UTF-"):
        rows_of(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize("separator", ["\n", ",\n", "\n\n"])
def test_objects_over_several_lines_are_named(name: str, separator: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(separator.join([json.dumps(PAIR, indent=2)] * 3) + "\n")
    with pytest.raises(DataError, match=r"over several lines \(the first ends on line 5\).*jq -c"):
        rows_of(path)


def test_one_broken_first_line_is_that_lines_fault(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [b'{"prompt": "a"', PAIR, PAIR])
    assert rows_of(path) == ["malformed_json", PAIR, PAIR]


def test_a_bom_on_each_line_is_no_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(b"\xef\xbb\xbf" + json.dumps(PAIR).encode() + b"\n" for _ in range(3)))
    assert rows_of(path) == [PAIR] * 3


def test_a_part_says_where_its_text_was_looked_for() -> None:
    parts = [{"type": "text", "value": "a"}]
    row = {"chosen": [{"role": "user", "content": parts}, {"role": "assistant", "content": "b"}], "rejected": []}
    with pytest.raises(BadRow, match="a text part with the keys type, value; its text belongs under text"):
        FORMATS["conversational"].convert(row, 1)


def test_a_message_that_calls_tools_needs_no_content() -> None:
    calls = [{"type": "function", "function": {"name": "now", "arguments": {}}}]
    user, call = {"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": calls}
    said = {"role": "assistant", "content": "b"}
    read = {"role": "assistant", "content": "", "tool_calls": calls}
    for row, name in (
        ({"prompt": [user], "chosen": [call], "rejected": [said]}, "conversational"),
        ({"chosen": [user, call], "rejected": [user, said]}, "conversational"),
        ({"prompt": "q", "chosen": [call], "rejected": [said]}, "ultrafeedback"),
        ({"messages": [user], "chosen": call, "rejected": said}, "sharegpt"),
    ):
        assert detect([row]) == name
        example = FORMATS[name].convert(row, 2)
        assert (example.prompt, example.answers) == ([user], [[read], [said]])
