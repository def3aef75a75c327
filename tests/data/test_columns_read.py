"""Columnar files are read by a process that may die: damage names its file, and a few bytes cannot ask for gigabytes."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydpo.data import columns_read
from raydpo.data.read import file_rows
from raydpo.errors import DataError

ROWS = [{"prompt": f"p{index}", "chosen": "yes " * index, "rejected": "no"} for index in range(40)]


def write_arrow(path: Path, table: pa.Table, **more: Any) -> Path:
    with pa.ipc.new_file(path, table.schema, **more) as writer:
        writer.write_table(table)
    return path


def rows_of(path: Path) -> list[Any]:
    return [line.row if line.bad is None else line.bad.reason for line in file_rows(path)]


def test_one_process_reads_all_files(tmp_path: Path) -> None:
    path = write_arrow(tmp_path / "a.arrow", pa.Table.from_pylist(ROWS))
    (tmp_path / "b.feather").write_bytes(path.read_bytes())
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "c.parquet")
    assert rows_of(path) == ROWS
    (child,) = columns_read._idle
    assert rows_of(tmp_path / "b.feather") == rows_of(tmp_path / "c.parquet") == ROWS
    assert columns_read._idle == [child]


def test_a_process_that_ended_for_lack_of_work_is_started_again(tmp_path: Path) -> None:
    path = write_arrow(tmp_path / "a.arrow", pa.Table.from_pylist(ROWS))
    assert rows_of(path) == ROWS
    (child,) = columns_read._idle
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait() == 0
    child.stdin = os.fdopen(os.open(os.devnull, os.O_WRONLY), "wb", 0)
    assert rows_of(path) == ROWS
    assert columns_read._idle != [child]


def test_a_process_stands_for_as_long_as_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody is to ask again, it ends after a fiftieth of a second."""
    monkeypatch.setattr(columns_read, "_idle", [])
    monkeypatch.setattr(columns_read.column_child, "IDLE_S", 0.02)
    path = write_arrow(tmp_path / "a.arrow", pa.Table.from_pylist(ROWS))
    assert rows_of(path) == ROWS
    (brief,) = columns_read._idle
    assert brief.wait() == 0
    with columns_read.reader_stands():
        assert rows_of(path) == ROWS
        (child,) = columns_read._idle
        with columns_read.reader_stands():
            pass
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.5)
        assert rows_of(path) == ROWS
        assert columns_read._idle == [child]
    assert child.poll() is not None, "it ended with the block"
    assert columns_read._idle == []
    assert rows_of(path) == ROWS
    (after,) = columns_read._idle
    assert after.wait() == 0, "as brief as before"


def test_a_file_that_kills_its_reader_is_named_and_the_next_one_is_read(tmp_path: Path) -> None:
    table = pa.table({"prompt": [f"{index} " + "x" * 2000 for index in range(12_000)]})
    pq.write_table(table, path := tmp_path / "a.parquet", compression="none")
    lines = file_rows(path)
    assert next(lines).number == 1
    (child,) = [one for one in _children() if one not in {idle.pid for idle in columns_read._idle}]
    os.kill(child, signal.SIGSEGV)
    with pytest.raises(
        DataError, match=r"a\.parquet cannot be read after row \d+: the process that reads it died of SIGSEGV"
    ):
        list(lines)
    assert rows_of(write_arrow(tmp_path / "b.arrow", pa.Table.from_pylist(ROWS))) == ROWS


def _children() -> list[int]:
    """Processes of column_child.py that this one started."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"column_child.py" in (entry / "cmdline").read_bytes():
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                found += [int(entry.name)] if parent == os.getpid() else []
        except OSError:
            continue
    return found


def test_offsets_that_point_outside_are_refused_before_a_value_is_read(tmp_path: Path) -> None:
    offsets = pa.py_buffer(struct.pack("<4i", 0, 4, -7, 9))
    text = pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"good morning"))
    path = write_arrow(tmp_path / "a.arrow", pa.table({"prompt": text}))
    with pytest.raises(DataError, match=r"a\.arrow cannot be read after row 0.*offset"):
        rows_of(path)


def test_an_index_beyond_its_dictionary_is_refused(tmp_path: Path) -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([0, 7]), pa.array(["a", "b"]), safe=False)
    with pytest.raises(DataError, match=r"a\.arrow cannot be read"):
        rows_of(write_arrow(tmp_path / "a.arrow", pa.table({"prompt": column})))


def test_dictionaries_views_and_runs_are_read_as_their_values(tmp_path: Path) -> None:
    text = pa.array(["a", "b", "a"])
    nested = pa.array([[{"x": "é"}], [], None], pa.list_(pa.struct([("x", pa.string())])))
    table = pa.table(
        {
            "words": text.dictionary_encode(),
            "views": text.cast(pa.string_view()),
            "lists": pa.ListArray.from_arrays([0, 1, 2, 3], text.dictionary_encode()),
            "nested": nested,
            "maps": pa.array([[("k", 1)], [], [("a", 2), ("b", 3)]], pa.map_(pa.string(), pa.int32())),
        }
    )
    assert rows_of(write_arrow(tmp_path / "a.arrow", table)) == [
        {"words": "a", "views": "a", "lists": ["a"], "nested": [{"x": "é"}], "maps": [("k", 1)]},
        {"words": "b", "views": "b", "lists": ["b"], "nested": [], "maps": []},
        {"words": "a", "views": "a", "lists": ["a"], "nested": None, "maps": [("a", 2), ("b", 3)]},
    ]
    runs = pa.RunEndEncodedArray.from_arrays([2, 3], ["a", "b"])
    assert rows_of(write_arrow(tmp_path / "b.arrow", pa.table({"runs": runs}))) == [{"runs": one} for one in "aab"]


@pytest.mark.parametrize("form", ["view", "nulls", "list"])
def test_a_value_that_stands_for_more_than_a_row_may_hold_is_left_out(form: str, tmp_path: Path) -> None:
    large = "x" * (70 << 20)
    columns = {
        "view": lambda: pa.array([large, "b", large], pa.string_view()),
        "nulls": lambda: pa.FixedSizeListArray.from_arrays(pa.nulls(3 * 10_000_000), 10_000_000),
        "list": lambda: pa.ListArray.from_arrays([0, 10_000_000, 10_000_001, 20_000_000], pa.nulls(20_000_000)),
    }
    table = pa.table({"prompt": columns[form]()})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    found = rows_of(write_arrow(tmp_path / "a.arrow", table, options=options))
    assert found[0] == found[2] == "too_large"
    assert found[1] == ("too_large" if form == "nulls" else {"prompt": [None] if form == "list" else "b"})


@pytest.mark.parametrize("form", ["plain", "dictionary"])
def test_a_file_that_unpacks_to_gigabytes_is_refused(form: str, tmp_path: Path) -> None:
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    zeros = pa.array([b"\0" * ((500 if form == "plain" else 20) << 20)], pa.binary())
    many = pa.array([0] * 100)
    table = pa.table({"prompt": zeros if form == "plain" else pa.DictionaryArray.from_arrays(many, zeros)})
    path = write_arrow(tmp_path / "a.arrow", table, options=options)
    del table
    assert path.stat().st_size < 1 << 20
    with pytest.raises(DataError, match=r"a\.arrow cannot be read after row 0.*(memory|malloc|alloc)"):
        rows_of(path)


def test_more_rows_than_bytes_can_say_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": pa.nulls(20_000_000)}), path := tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet cannot be read.*claims more than 2 rows"):
        rows_of(path)


def test_a_footer_without_rows_in_front_of_data_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path := tmp_path / "a.parquet")
    pq.write_table(pa.Table.from_pylist(ROWS).slice(0, 0), empty := tmp_path / "b.parquet")
    assert rows_of(empty) == []
    with pq.ParquetWriter(nothing := tmp_path / "c.parquet", pa.schema([("prompt", pa.string())])):
        pass
    assert rows_of(nothing) == []
    whole, footer = path.read_bytes(), nothing.read_bytes()[4:]
    path.write_bytes(whole + footer)
    with pytest.raises(DataError, match=r"its footer lists no rows, and [\d,]+ bytes of data lie before it"):
        rows_of(path)


def test_dates_that_python_lacks_spoil_their_row_alone(tmp_path: Path) -> None:
    dates = pa.array([0, 2**31 - 1, 1], pa.int32()).cast(pa.date32())
    found = rows_of(write_arrow(tmp_path / "a.arrow", pa.table({"prompt": ["a", "b", "c"], "day": dates})))
    assert [one if isinstance(one, str) else one["prompt"] for one in found] == ["a", "not_a_value", "c"]


def test_columns_nested_beyond_reason_are_refused(tmp_path: Path) -> None:
    deep = pa.nulls(1)
    for _ in range(80):
        deep = pa.StructArray.from_arrays([deep], ["x"])
    pq.write_table(pa.table({"prompt": deep}), path := tmp_path / "a.parquet")
    with pytest.raises(DataError, match="nested more than 64 deep"):
        rows_of(path)
