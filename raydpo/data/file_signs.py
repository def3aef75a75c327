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
    wide = "UTF-32" if beginning[:4] in (b"\xff\xfe\0\0", b"\0\0\xfe\xff") and len(beginning) > 8 else None
    has_mark = beginning[:2] in (b"\xff\xfe", b"\xfe\xff") and beginning.count(0) * 4 > len(beginning) > 4
    if wide is None and (has_mark or _every_other_is_nul(beginning)):
        wide = "UTF-16"
    if wide is not None:
        raise DataError(
            f"{path} is {wide} text, and files of rows are read as UTF-8; no line could have been read. Write it again as "
            f"UTF-8: iconv -f {wide} -t UTF-8 {path.name} > utf8_{path.name}"
        )


def _every_other_is_nul(beginning: bytes) -> bool:
    even, odd = beginning[::2], beginning[1::2]
    return len(odd) >= 4 and max(even.count(0) / len(even), odd.count(0) / len(odd)) > 0.9


def _check_one_object_a_line(path: Path) -> None:
    lines = list(itertools.islice(byte_lines(path), _MOST_LINES))
    start = next((place for place, line in enumerate(lines) if line.removeprefix(_BOM).strip()), 0)
    whole = ""
    for number, line in enumerate(lines[start:], start=1):
        try:
            whole += line.removeprefix(_BOM).decode("utf-8") + "\n"
        except UnicodeDecodeError:
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
