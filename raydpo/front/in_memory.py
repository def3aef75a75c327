"""What `data` may be: paths stay paths, everything else becomes a file of rows named by its content.

Comes in: a path or several, a list of dicts, a frame of pandas or polars, a table of pyarrow, a data set of datasets or Ray, an
iterator of dicts. Goes out: entries of `data.train` or `data.eval`.
Decision: a library is known by the module of the object's class, so that none is imported that the caller does not use.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from raydpo.config.mixture_entry import MixtureEntry
from raydpo.errors import DataError
from raydpo.front.plain_values import RowCleaner
from raydpo.front.rows_file import keep_rows

_ROWS_PER_BATCH = 1024
_ALLOWED = (
    "a path or several, a list of dicts, a pandas or polars frame, a pyarrow table, a datasets.Dataset, a Ray Dataset or an "
    "iterator of dicts"
)


def is_named(data: Any) -> bool:
    """Whether `data` names files, folders or hub data sets: nothing of it is in memory."""
    if isinstance(data, str | os.PathLike):
        return True
    if isinstance(data, Mapping):
        return _is_entry(data)
    return isinstance(data, list | tuple) and bool(data) and all(map(_names, data))


def entries(name: str, data: Any, folder: Path) -> list[str | dict[str, Any]]:
    """`data` as entries of a config; rows are kept in `folder`. name: of the argument, in messages.

    Raises DataError for what is none of the kinds, and with row and column for values that no file holds.
    """
    if is_named(data):
        found = [data] if isinstance(data, str | os.PathLike | Mapping) else data
        return [_entry(one) for one in found]
    is_pandas = _library(data) == "pandas"
    return [str(keep_rows(_rows(name, data), folder, RowCleaner(name, nan_is_missing=is_pandas)))]


def _names(value: Any) -> bool:
    return isinstance(value, str | os.PathLike) or _is_entry(value)


def _is_entry(value: Any) -> bool:
    """Whether a mapping is an entry of a mixture ({path: ..., passes: 2}) and no row."""
    return isinstance(value, Mapping) and "path" in value and set(value) <= set(MixtureEntry.model_fields)


def _entry(value: Any) -> str | dict[str, Any]:
    if isinstance(value, Mapping):
        return {key: os.fspath(one) if key == "path" else one for key, one in value.items()}
    return str(os.fspath(value))


def _library(data: Any) -> str:
    return type(data).__module__.partition(".")[0]


def _rows(name: str, data: Any) -> Iterator[Any]:
    """Rows of `data`, in order, in memory a batch at a time where the library has them elsewhere."""
    library, kind = _library(data), type(data).__name__
    if kind in ("DatasetDict", "IterableDatasetDict") or isinstance(data, Mapping):
        names = ", ".join(map(str, list(data)[:5]))
        raise DataError(
            f"{name}: a {kind} of {names} was given; allowed: {_ALLOWED}. Nothing was written. Give one split "
            f"({name}=data['train'], eval_data=data['test']), or columns as a table (pyarrow.table(data))."
        )
    if isinstance(data, str | bytes) or not (isinstance(data, Iterable) or library in ("pyarrow", "ray", "polars")):
        raise DataError(f"{name}: a {kind} was given; allowed: {_ALLOWED}. Nothing was written.")
    if library == "pandas" and kind == "DataFrame":
        return _frame_rows(data)
    if library == "polars" and kind in ("DataFrame", "LazyFrame"):
        frame = data.collect() if kind == "LazyFrame" else data
        return iter(frame.iter_rows(named=True))
    if library == "pyarrow" and kind in ("Table", "RecordBatch", "RecordBatchReader"):
        return _arrow_rows(data)
    if library == "datasets" and kind == "Dataset":
        return _dataset_rows(data)
    if library == "ray" and hasattr(data, "iter_rows"):
        return iter(data.iter_rows())
    return iter(data)


def _frame_rows(frame: Any) -> Iterator[Any]:
    for start in range(0, len(frame), _ROWS_PER_BATCH):
        yield from frame.iloc[start : start + _ROWS_PER_BATCH].to_dict("records")


def _arrow_rows(table: Any) -> Iterator[Any]:
    batches = [table] if type(table).__name__ == "RecordBatch" else table
    if type(table).__name__ == "Table":
        batches = table.to_batches(max_chunksize=_ROWS_PER_BATCH)
    for batch in batches:
        yield from batch.to_pylist()


def _dataset_rows(dataset: Any) -> Iterator[Any]:
    arrow = dataset.with_format("arrow")
    for start in range(0, len(dataset), _ROWS_PER_BATCH):
        yield from arrow[start : start + _ROWS_PER_BATCH].to_pylist()
