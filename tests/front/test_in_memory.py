"""The same rows are the same file, whatever held them, and it reads as the lines of JSON of these rows do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pyarrow
import pytest

from raydpo.data.read import file_rows
from raydpo.errors import DataError
from raydpo.front.in_memory import entries
from tests.pipelines.toy import Toy, read_pairs

Row = dict[str, Any]

TALK = [
    {
        "chosen": [{"role": "user", "content": f"say {number}"}, {"role": "assistant", "content": str(number)}],
        "rejected": [{"role": "user", "content": f"say {number}"}, {"role": "assistant", "content": "no"}],
        "score": number / 4,
        "is_good": number % 2 == 0,
    }
    for number in range(5)
]

KINDS: dict[str, Callable[[list[Row]], Any]] = {
    "list": lambda rows: rows,
    "tuple": tuple,
    "iterator": lambda rows: iter(rows),
    "pandas": pandas.DataFrame,
    "pyarrow": pyarrow.Table.from_pylist,
    "batch": pyarrow.RecordBatch.from_pylist,
    "reader": lambda rows: pyarrow.Table.from_pylist(rows).to_reader(),
    "datasets": datasets.Dataset.from_list,
    "iterable dataset": lambda rows: datasets.Dataset.from_list(rows).to_iterable_dataset(),
    "other order of columns": lambda rows: [dict(reversed(row.items())) for row in rows],
    "absent is None": lambda rows: [{**row, "note": None} for row in rows],
}


def kept(data: Any, folder: Path) -> Path:
    (entry,) = entries("data", data, folder)
    assert isinstance(entry, str)
    return Path(entry)


def read(path: Path) -> list[Row]:
    lines = list(file_rows(path))
    assert all(line.bad is None for line in lines)
    return [{name: value for name, value in (line.row or {}).items() if value is not None} for line in lines]


@pytest.mark.parametrize("kind", KINDS)
def test_one_digest_for_equal_rows(kind: str, toy: Toy, tmp_path: Path) -> None:
    for rows in (read_pairs(toy.train), TALK):
        path = kept(KINDS[kind](rows), tmp_path)  # type: ignore[arg-type]
        assert path.suffix == ".arrow"
        assert path == kept(rows, tmp_path)
        assert read(path) == [dict(sorted(row.items())) for row in rows]
    assert len(list(tmp_path.iterdir())) == 2, "nothing else stays"


def test_another_row_is_another_file(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 3
    assert len({kept(some, tmp_path) for some in (rows, rows[:2], [*rows[:2], {**rows[0], "chosen": "d"}])}) == 3


def test_polars(tmp_path: Path, toy: Toy) -> None:
    polars = pytest.importorskip("polars", reason="polars is not installed")
    for rows in (read_pairs(toy.train), TALK):
        assert kept(polars.DataFrame(rows), tmp_path) == kept(polars.LazyFrame(rows), tmp_path) == kept(rows, tmp_path)


def test_pandas_says_nan_where_there_is_no_value(tmp_path: Path) -> None:
    rows: list[Row] = [{"prompt": "a", "weight": 0.5}, {"prompt": "b"}, {"prompt": None, "weight": 1.0}]
    assert kept(pandas.DataFrame(rows), tmp_path) == kept(rows, tmp_path)


def test_values_of_numpy_are_values(tmp_path: Path) -> None:
    ours = [{"ids": [1, 2], "score": 0.5, "is_good": True, "text": "a"}]
    theirs = [{"ids": np.array([1, 2]), "score": np.float32(0.5), "is_good": np.bool_(True), "text": np.str_("a")}]
    assert kept(theirs, tmp_path) == kept(ours, tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        [{"k": 1}, {"k": 2.5}],
        [{"k": 1}, {"k": "text"}],
        [{"k": {"a": 1, "b": 2}}, {"k": {"b": 2, "a": 1}}],
        [{"k": 1 << 70}],
    ],
    ids=["integers and floats", "numbers and text", "orders of keys", "beyond 64 bits"],
)
def test_what_no_schema_says_exactly_is_lines_of_json(values: list[Row], tmp_path: Path) -> None:
    path = kept(values, tmp_path)
    assert path.suffix == ".jsonl"
    assert [json.dumps(row) for row in read(path)] == [json.dumps(row) for row in values]


def test_an_iterator_is_consumed_once_and_by_the_row(tmp_path: Path) -> None:
    alive = most = given = 0

    class Counted(dict[str, Any]):
        def __init__(self, **values: Any) -> None:
            nonlocal alive, most
            super().__init__(**values)
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def rows() -> Any:
        nonlocal given
        for number in range(3000):
            given += 1
            yield Counted(prompt=str(number), chosen="a", rejected="b")

    path = kept(rows(), tmp_path)
    assert given == 3000 == len(read(path))
    assert most <= 3


BAD: list[tuple[Any, str]] = [
    (float("nan"), "row 2, column 'x' is nan; allowed: a finite number"),
    (float("inf"), "row 2, column 'x' is inf"),
    ([1.0, float("nan")], "row 2, column 'x' is nan"),
    (b"bytes", "row 2, column 'x' holds 5 bytes"),
    ({"a": {1: 2}}, "row 2, column 'x' holds a mapping with the key 1"),
    ("\ud800", "row 2, column 'x' holds text that is not Unicode"),
    (object(), "row 2, column 'x' holds a object"),
]


@pytest.mark.parametrize(("value", "said"), BAD, ids=[said.partition("column 'x' ")[2][:12] for _, said in BAD])
def test_a_value_that_no_file_holds_is_named(value: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        kept([{"x": 1}, {"x": value}], tmp_path)
    assert said in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_all_problems_come_at_once_and_not_all_are_shown(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        kept([{"x": b"", "y": float("nan")}, 5, *({"x": b""} for _ in range(200))], tmp_path)
    problems = caught.value.problems
    assert "row 1, column 'x'" in problems[0]
    assert "row 1, column 'y'" in problems[1]
    assert "row 2 is of type int" in problems[2]
    assert len(problems) == 12
    assert "193 more" in problems[10]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "no rows"),
        (iter(()), "no rows"),
        (5, "a int was given"),
        (None, "a NoneType was given"),
        ({"prompt": ["a"]}, "Give one split"),
        (datasets.DatasetDict({"train": datasets.Dataset.from_list([{"a": 1}])}), "a DatasetDict of train was given"),
    ],
    ids=["empty", "spent", "number", "none", "columns", "splits"],
)
def test_what_is_no_data_is_said(data: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        entries("data", data, tmp_path)
    assert not list(tmp_path.iterdir())


def test_paths_stay_what_they_are(tmp_path: Path) -> None:
    mixture: list[Any] = [tmp_path / "a.jsonl", "hub:a/b", {"path": tmp_path / "c.jsonl", "passes": 2}]
    assert entries("data", mixture, tmp_path) == [
        str(tmp_path / "a.jsonl"),
        "hub:a/b",
        {"path": str(tmp_path / "c.jsonl"), "passes": 2},
    ]
    assert entries("data", tmp_path, tmp_path) == [str(tmp_path)]
    assert not list(tmp_path.iterdir())
