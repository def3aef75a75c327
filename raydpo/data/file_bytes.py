"""The bytes of a file, unpacked, in pieces or in lines; a file that cannot be read any further raises DataError.

Decision: lines end at byte 0x0A and nowhere else, since JSON strings may hold other line breaks; a packed file that ends
before its end mark is damaged, since a part of it would be used as if it were all.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from raydpo.errors import DataError

MOST_LINE_BYTES = 64 << 20
"""Of one line or row: a few bytes of a packed file can be one line of gigabytes."""

_CHUNK_BYTES = 1 << 20
_PACKED_BYTES = 1 << 11  # of Zstandard, whose blocks of four bytes may stand for 128 KiB
_SHOWN_BYTES = 1 << 10
_FREE_ROWS, _ROWS_PER_BYTE = 100_000, 2


class Truncated(Exception):
    """A file ends before its end mark."""


DAMAGE = (OSError, EOFError, zlib.error, Truncated)
"""What reading a damaged file raises."""


class LongLine(bytes):
    """The beginning of a line that has more than `MOST_LINE_BYTES`."""


class _Begun:
    """A line of which the end was not met yet: its pieces, joined once."""

    def __init__(self) -> None:
        self.parts, self.size = list[bytes](), 0

    def add(self, piece: bytes) -> None:
        self.size += len(piece)
        if self.size <= MOST_LINE_BYTES:
            self.parts.append(piece)
        else:
            self.parts = [b"".join(self.parts)[:_SHOWN_BYTES] or piece[:_SHOWN_BYTES]]

    def taken(self) -> bytes:
        """The whole line; after it begins the next one."""
        line = b"".join(self.parts)
        line = line if self.size <= MOST_LINE_BYTES else LongLine(line)
        self.parts, self.size = [], 0
        return line


def byte_lines(path: Path) -> Iterator[bytes]:
    """Lines without their line feed; the last one counts also without it. `LongLine` for one that has too many bytes."""
    yield from _lines(path, chunks(path), 0)


def byte_lines_between(path: Path, start: int, end: int, num_before: int) -> Iterator[bytes]:
    """The same of a range of bytes that begins with a line. num_before: lines before it, for the message."""
    yield from _lines(path, _chunks_between(path, start, end), num_before)


def _lines(path: Path, pieces: Iterator[bytes], num_lines: int) -> Iterator[bytes]:
    begun, most = _Begun(), most_rows(path)
    try:
        for chunk in pieces:
            first, *others = chunk.split(b"\n")
            begun.add(first)
            if others:
                num_lines += len(others)
                if num_lines > most:
                    raise Truncated(TOO_MANY)
                yield begun.taken()
                yield from others[:-1]
                begun.add(others[-1])
    except DAMAGE as error:
        unreadable(path, f"after line {num_lines}", error)
    if begun.size:
        yield begun.taken()


TOO_MANY = "it holds more than 2 rows to each of its packed bytes"


def most_rows(path: Path) -> float:
    """How many rows a file may hold: of a packed one, which a few bytes may fill with millions, a few for each byte."""
    is_packed = path.suffix.lower() in (".gz", ".zst")
    return _FREE_ROWS + _ROWS_PER_BYTE * path.stat().st_size if is_packed else math.inf


def chunks(path: Path) -> Iterator[bytes]:
    """The content of a file, unpacked by its ending."""
    if path.suffix.lower() == ".zst":
        yield from _zstd_chunks(path)
        return
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            yield chunk


def _chunks_between(path: Path, start: int, end: int) -> Iterator[bytes]:
    with path.open("rb") as stream:
        stream.seek(start)
        while start < end and (chunk := stream.read(min(_CHUNK_BYTES, end - start))):
            start += len(chunk)
            yield chunk


def _zstd_chunks(path: Path) -> Iterator[bytes]:
    import zstandard

    with path.open("rb") as stream:
        frame, begun = zstandard.ZstdDecompressor().decompressobj(), False
        while data := stream.read(_PACKED_BYTES):
            while data:
                try:
                    begun = True
                    chunk = frame.decompress(data)
                except zstandard.ZstdError as error:
                    raise Truncated(str(error)) from error
                if chunk:
                    yield chunk
                data = b""
                if frame.eof:
                    data, frame, begun = frame.unused_data, zstandard.ZstdDecompressor().decompressobj(), False
        if begun:
            raise Truncated("the compressed data end before their end mark")


def unreadable(path: Path, where: str, error: Exception) -> NoReturn:
    """Raise the error for a file that cannot be read at `where`."""
    raise DataError(
        f"{path} cannot be read {where}: {str(error) or repr(error)}. The file is damaged or cut short, and training "
        "would silently use a part of it; fetch or write it again."
    ) from error
