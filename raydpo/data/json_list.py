"""One JSON list, its items read one after the other, so that a file of any size takes the memory of its largest item.

Comes in: the content of a file in pieces. Goes out: values; ValueError where the text is no list of them.
Decision: an item is tried again only when twice as much of it is there, so that a long one costs twice its length at most.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

_WHITE = re.compile(r"[ \t\n\r]*")


def list_items(pieces: Iterable[bytes], most_chars: int) -> Iterator[tuple[Any, int]]:
    """(item, its characters) of the list in order. most_chars: of one item. ValueError also for bytes that are not UTF-8."""
    text = _Ahead(pieces)
    text.skip("[")
    if text.next_char() == "]":
        text.skip("]")
    else:
        while True:
            yield _item(text, most_chars)
            if text.next_char() == "]":
                break
            text.skip(",")
        text.skip("]")
    if text.next_char():
        raise ValueError(f"text behind the end of the list: {text.buffer[text.place : text.place + 20]!r}")


class _Ahead:
    """Text that is decoded as far as it is asked for. place: of the next character in `buffer`."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.buffer, self.place, self.is_whole = "", 0, False

    def grow(self, num_chars: int) -> None:
        """Have more than `num_chars` characters ahead, or all there are."""
        parts = [self.buffer[self.place :]]
        size = len(parts[0])
        wanted = max(num_chars, size) + 1
        while size < wanted and not self.is_whole:
            piece = next(self._pieces, b"")
            self.is_whole = not piece
            parts.append(self._decoder.decode(piece, final=self.is_whole))
            size += len(parts[-1])
        self.buffer, self.place = "".join(parts), 0

    def next_char(self) -> str:
        """The next character that is not white space, "" at the end."""
        while True:
            found = _WHITE.match(self.buffer, self.place)
            assert found is not None
            self.place = found.end()
            if self.place < len(self.buffer):
                return self.buffer[self.place]
            if self.is_whole:
                return ""
            self.grow(0)

    def skip(self, char: str) -> None:
        if self.next_char() != char:
            found = self.buffer[self.place : self.place + 20]
            raise ValueError(f"{char!r} is missing" + (f" before {found!r}" if found else " at the end of the text"))
        self.place += 1


class _TooLong(ValueError):
    """An item that was read, and is longer than it may be."""


def _too_long(most_chars: int) -> str:
    return f"an item of more than {most_chars:,} characters, or one that is not JSON"


def _item(text: _Ahead, most_chars: int) -> tuple[Any, int]:
    decoder = json.JSONDecoder()
    text.next_char()
    while True:
        try:
            value, end = decoder.raw_decode(text.buffer, text.place)
            if text.is_whole or _is_followed(text.buffer, end):
                num_chars = end - text.place
                if num_chars > most_chars:
                    raise _TooLong(_too_long(most_chars))
                text.place = end
                return value, num_chars
        except _TooLong:
            raise
        except ValueError:
            if text.is_whole:
                raise
        except RecursionError as error:
            raise ValueError("nested too deeply") from error
        ahead = len(text.buffer) - text.place
        if ahead > most_chars:
            raise ValueError(_too_long(most_chars))
        text.grow(2 * ahead)


def _is_followed(buffer: str, end: int) -> bool:
    """Whether what follows says that the item is whole; a number may go on behind what is there."""
    found = _WHITE.match(buffer, end)
    return found is not None and buffer[found.end() : found.end() + 1] in (",", "]")
