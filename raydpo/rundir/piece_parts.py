"""The parts of a piece as files: their names, their order, their rows.

Comes in: a folder and rows. Goes out: Arrow files that carry the start of their hash in the name, or JSON lines; rows again.
Decision: how a part is read is said by its name, so that a piece that was begun with JSON lines, as all were, goes on and ends
with Arrow. Rows are read a part at a time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from raydpo.artifacts import ShardRecord, write_text
from raydpo.artifacts.arrow import read_hashed, write_shard
from raydpo.errors import IntegrityError
from raydpo.schema.json_text import parse_json
from raydpo.schema.round_rows import SAMPLES, SCORED_PAIRS, SCORES, SPIN_PAIRS

Rows = list[dict[str, Any]]
_PART = re.compile(r"part-(\d+)(?:\.jsonl|-[0-9a-f]{12}\.arrow)", re.ASCII)


def number_of(name: str) -> int | None:
    """Of a part; None for a file that is none."""
    part = _PART.fullmatch(name)
    return int(part[1]) if part else None


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines, durably."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_part(folder: Path, number: int, rows: pa.Table | Iterable[Mapping[str, Any]]) -> ShardRecord | None:
    """Make a part durable: a table as Arrow, with its record, anything else as JSON lines."""
    path = folder / f"part-{number:05d}.jsonl"
    if isinstance(rows, pa.Table):
        return write_shard(path.with_suffix(".arrow"), rows, add_hash=True)
    write_lines(path, rows)
    return None


def read_part(path: Path) -> Rows:
    """Rows of one file. Raises IntegrityError."""
    try:
        if path.suffix == ".arrow":
            return list(read_hashed(path, SAMPLES, SCORES, SCORED_PAIRS, SPIN_PAIRS).to_pylist())
        return [parse_json(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError, IntegrityError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}. Remove it: the same command makes it again.") from error


def in_order(folder: Path, names: Iterable[str]) -> list[str]:
    """Those of `names` that are parts, by number: as text, part 100000 would stand before part 99999.

    folder: for the message. Raises IntegrityError where a number is missing or there twice.
    """
    found: dict[int, str] = {}
    for name in names:
        if (number := number_of(name)) is not None and found.setdefault(number, name) != name:
            raise IntegrityError(
                f"{folder} has two files of part {number}, {found[number]} and {name}; nobody knows which one counts. Remove "
                "the folder: the same command makes it again."
            )
    if missing := set(range(len(found))) - set(found):
        raise IntegrityError(
            f"{folder} has {len(found)} parts, up to number {max(found)}, and no part {min(missing)}; rows would be taken for "
            "those of other prompts. Remove the folder: the same command makes it again."
        )
    return [found[number] for number in range(len(found))]


def table_of(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table; a column that a row lacks is null in it."""
    return pa.Table.from_pylist(rows, schema=schema)
