"""A source cut into ranges of rows, which any process reads alone.

Comes in: a source. Goes out: ranges of at most `PART_ROWS` rows and about `PART_BYTES`.
Decision: lines of JSON are found again by their bytes; of every other kind a process reads on from where it is,
so that it goes through a file once, whatever ranges it is given in rising order. Price: a packed or columnar file is read
once more to count its rows, and once by each process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from raydpo.data.file_bytes import byte_lines_between
from raydpo.data.file_signs import check_beginning
from raydpo.data.read import Line, kind_of, parse_line
from raydpo.data.sources import FileSource, FolderSource, HubSource, Source
from raydpo.errors import DataError

PART_ROWS = 4096
PART_BYTES = 64 << 20
SMALL_BYTES, SMALL_PACKED_BYTES = 4 << 20, 128 << 10
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class RowRange:
    """Consecutive lines of a source.

    source: with paths that hold in every process.
    number: of the range in its source.
    first: how many lines are before it.
    num_lines: how many it has.
    start, end: its bytes, of lines of JSON.
    """

    source: Source
    number: int
    first: int
    num_lines: int
    start: int = 0
    end: int | None = None


def cut(source: Source) -> list[RowRange]:
    """The ranges of a source, in order. Raises DataError for a source that cannot be read."""
    anywhere = _anywhere(source)
    if isinstance(source, FileSource) and is_lines(source.path):
        check_beginning(source.path)
        try:
            cuts: Iterator[tuple[int, int, int, int | None]] = iter(list(_by_bytes(source.path)))
        except OSError as error:
            raise DataError(f"{source.name} cannot be read: {error.strerror}. Check its permissions.") from error
    else:
        cuts = _by_rows(source)
    return [RowRange(anywhere, number, *each) for number, each in enumerate(cuts)]


def is_small(source: Source) -> bool:
    """Whether cutting a source would not pay."""
    if isinstance(source, HubSource):
        return source.num_rows <= PART_ROWS
    is_packed = isinstance(source, FileSource) and source.path.suffix.lower() in (".gz", ".zst", ".parquet")
    least = SMALL_PACKED_BYTES if is_packed else SMALL_BYTES
    try:
        files = [source.path] if isinstance(source, FileSource) else source.path.iterdir()
        return sum(file.stat().st_size for file in files) < least
    except OSError:  # whoever reads it says what is wrong
        return True


def _anywhere(source: Source) -> Source:
    """The same with an absolute path."""
    if isinstance(source, FileSource):
        return FileSource(source.path.absolute(), source.name)
    if isinstance(source, FolderSource):
        return FolderSource(source.path.absolute(), source.name)
    return source


def _by_bytes(path: Path) -> Iterator[tuple[int, int, int, int]]:
    """(lines before, lines, first byte, byte behind the last) of each range of a file of lines."""
    before = lines = start = offset = 0
    ends_open = False
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            at = 0
            while lines + chunk.count(b"\n", at) >= PART_ROWS:
                for _ in range(PART_ROWS - lines):
                    at = chunk.index(b"\n", at) + 1
                yield before, PART_ROWS, start, offset + at
                before, lines, start = before + PART_ROWS, 0, offset + at
            lines += chunk.count(b"\n", at)
            cut_at = chunk.rfind(b"\n", at) + 1
            if cut_at and offset + cut_at - start >= PART_BYTES:
                yield before, lines, start, offset + cut_at
                before, lines, start = before + lines, 0, offset + cut_at
            offset += len(chunk)
            ends_open = not chunk.endswith(b"\n")
    if offset > start:
        yield before, lines + ends_open, start, offset


def _by_rows(source: Source) -> Iterator[tuple[int, int, int, None]]:
    """(lines before, lines, 0, None) of each range of a source whose rows have to be counted."""
    before = lines = size = 0
    for line in source.rows():
        lines, size = lines + 1, size + line.num_bytes
        if lines == PART_ROWS or size >= PART_BYTES:
            yield before, lines, 0, None
            before, lines, size = before + lines, 0, 0
    if lines:
        yield before, lines, 0, None


class RangeReader:
    """Reads ranges; those of one source that are asked for in rising order cost one reading of it."""

    def __init__(self) -> None:
        self._source: Source | None = None
        self._rows: Iterator[Line] = iter(())
        self._next = 0

    def lines(self, wanted: RowRange) -> Iterator[Line]:
        """Lines of a range, numbered as in the whole source."""
        if wanted.end is not None:
            assert isinstance(wanted.source, FileSource)
            raws = byte_lines_between(wanted.source.path, wanted.start, wanted.end, wanted.first)
            yield from (parse_line(number, raw) for number, raw in enumerate(raws, start=wanted.first + 1))
            return
        if self._source != wanted.source or self._next > wanted.first:
            self._source, self._rows, self._next = wanted.source, wanted.source.rows(), 0
        for line in islice(self._rows, wanted.first - self._next + wanted.num_lines):
            self._next += 1
            if self._next > wanted.first:
                yield line


def is_lines(path: Path) -> bool:
    """Whether a file is read line by line, unpacked."""
    return kind_of(path) == "jsonl" and path.suffix.lower() in (".jsonl", ".ndjson")
