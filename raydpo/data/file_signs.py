"""What is wrong with a file of JSON lines as a whole, seen at its beginning and said once.

Decision: a cause that spoils every line is one sentence, not a table with a reason for each line.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from raydpo.data.file_bytes import DAMAGE, byte_lines, chunks
from raydpo.errors import DataError

_BEGINNING_BYTES = 64
_MOST_LINES = 2000
_MOST_TRIED_BYTES = 16 << 20
_WIDE = {"UTF-32": ("utf-32-le", "utf-32-be"), "UTF-16": ("utf-16-le", "utf-16-be")}
_BOM = b"\xef\xbb\xbf"


def check_beginning(path: Path) -> None:
    """Raise DataError for UTF-16 or UTF-32 text, and for an object that is written over several lines."""
    try:
        beginning = next(chunks(path), b"")[:_BEGINNING_BYTES]
        check_encoding(path, beginning)
        if beginning.removeprefix(_BOM).lstrip()[:1] == b"{":
            _check_one_object_a_line(path)
    except DAMAGE:
        return  # said by whoever reads the lines


def check_encoding(path: Path, beginning: bytes) -> None:
    """Raise DataError when the first bytes of a text file are those of UTF-16 or UTF-32."""
    wide = next((name for name, spelled in _WIDE.items() if any(_reads_as(beginning, one) for one in spelled)), None)
    if wide is not None:
        raise DataError(
            f"{path} is {wide} text, and files of rows are read as UTF-8; no line could have been read. Write it again as "
            f"UTF-8: iconv -f {wide} -t UTF-8 {path.name} > utf8_{path.name}"
        )


def _reads_as(beginning: bytes, encoding: str) -> bool:
    """Whether the bytes are a few printable characters of `encoding`, the first one of ASCII, which has NUL bytes there."""
    width = 4 if "32" in encoding else 2
    text = beginning[: len(beginning) // width * width].decode(encoding, "replace").removeprefix("\ufeff").lstrip()
    begins_well = text[:1].isascii() and (text[:1].isalnum() or text[:1] in ("{", "[", '"'))
    return len(text) >= 4 and begins_well and "\ufffd" not in text and all(map(_is_written, text))


def _is_written(char: str) -> bool:
    return char.isprintable() or char.isspace()


def _check_one_object_a_line(path: Path) -> None:
    whole, start, number, tried = "", 0, 0, 0
    for place, line in enumerate(itertools.islice(byte_lines(path), _MOST_LINES)):
        line = line.removeprefix(_BOM)
        if not whole and not line.strip():
            start = place + 1
            continue
        number = place + 1 - start
        try:
            whole += line.decode("utf-8") + "\n"
        except UnicodeDecodeError:
            return
        tried += len(whole)
        if tried > _MOST_TRIED_BYTES and number > 1:
            return
        if not line.rstrip().endswith((b"}", b"},")):
            continue
        try:
            _, end = json.JSONDecoder().raw_decode(whole.lstrip())
        except (ValueError, RecursionError):
            continue
        if number > 1 and not whole.lstrip()[end:].strip(" \n,"):
            raise DataError(
                f"{path} holds JSON objects that are written over several lines (the first ends on line {start + number}), "
                "and each line must hold one whole object; no line could have been read. Write one object a line: "
                f"jq -c . {path.name} > lines.jsonl (or put all into one list, in a .json file)."
            )
        return
