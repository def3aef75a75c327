"""Arrow and Parquet files, read by another process (column_child.py) that may die of them.

In: a path. Out: record batches that were validated whole, of a bounded size; DataError where the file cannot be read, also
where it killed its reader. Decision: the process stays for the next file and ends by itself when nobody asks for a while, so
that a run starts one, whatever the number of its files; within `reader_stands` it waits for as long as that lasts. Price: a
fifth of a second for the first file, and the memory of an interpreter with pyarrow while it waits.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydpo.data import column_child
from raydpo.data.column_child import FRAME
from raydpo.data.file_bytes import MOST_LINE_BYTES, unreadable

_SILENT_S = 600
"""A reader that works sends something far more often; its CPU time is bounded by itself."""

_idle: list[subprocess.Popen[bytes]] = []
_standing: list[None] = []
"""One for each block of `reader_stands` that is open."""


def _forget() -> None:
    _idle.clear()
    _standing.clear()


os.register_at_fork(after_in_child=_forget)


@contextmanager
def reader_stands() -> Iterator[None]:
    """A process that is started within the block stays to its end: rounds ask once in a long while."""
    _standing.append(None)
    try:
        yield
    finally:
        _standing.pop()
        while _idle and not _standing:
            child = _idle.pop()
            child.kill()
            child.communicate()


@dataclass(frozen=True)
class TooLarge:
    """A row that is left out. num_bytes: what it takes."""

    num_bytes: int


class _Died(Exception):
    """The reading process is gone, or does not answer."""


def batches_of(path: Path, kind: str) -> Iterator[Any]:
    """Record batches of a file, `TooLarge` for a row that is left out. kind: parquet or arrow. Raises DataError."""
    done = 0
    try:
        for found in _answers(path, kind):
            done += 1 if isinstance(found, TooLarge) else found.num_rows
            yield found
    except (_Died, OSError) as error:
        unreadable(path, f"after row {done}", error)


def _answers(path: Path, kind: str) -> Iterator[Any]:
    import pyarrow as pa

    request = b"\0".join([kind.encode(), str(MOST_LINE_BYTES).encode(), os.fsencode(path.absolute())])
    child, (letter, payload) = _asked(request)
    try:
        while letter in b"BL":
            if letter == b"L":
                yield TooLarge(int(payload))
            else:
                yield from pa.ipc.open_stream(payload)
            letter, payload = _frame(child)
        _idle.append(child)  # also after a file that it refused
        if letter != b"D":
            raise _Died(payload.decode("utf-8", "replace"))
    finally:
        if child not in _idle:
            child.kill()
            child.communicate()


def _asked(request: bytes) -> tuple[subprocess.Popen[bytes], tuple[bytes, bytes]]:
    """A process that was asked, and its first frame. One that just ended because nobody asked is no failure."""
    while True:
        try:
            child, is_used = _idle.pop(), True
        except IndexError:
            child, is_used = _started(), False
        try:
            assert child.stdin is not None
            child.stdin.write(FRAME.pack(b"R", len(request)) + request)
            return child, _frame(child)
        except BrokenPipeError:
            child.communicate()
            if not is_used:
                raise _Died(_cause(child.returncode)) from None
        except _Died:
            child.kill()
            child.communicate()
            if not is_used or child.returncode:
                raise


def _started() -> subprocess.Popen[bytes]:
    paths = os.pathsep.join(os.path.abspath(place) for place in sys.path if place)
    environment = {**os.environ, "PYTHONPATH": paths, "ARROW_DEFAULT_MEMORY_POOL": "system"}
    words = [sys.executable, "-P", column_child.__file__, str(0 if _standing else column_child.IDLE_S)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        words, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, bufsize=0, env=environment, start_new_session=True
    )


def _frame(child: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    letter, length = FRAME.unpack(_exactly(child, FRAME.size))
    return letter, _exactly(child, length)


def _exactly(child: subprocess.Popen[bytes], num_bytes: int) -> bytes:
    assert child.stdout is not None
    found, ready = bytearray(), select.poll()
    ready.register(child.stdout, select.POLLIN)
    while len(found) < num_bytes:
        if not ready.poll(_SILENT_S * 1000):
            raise _Died(f"the process that reads it said nothing for {_SILENT_S} seconds")
        part = child.stdout.read(min(num_bytes - len(found), 1 << 20))
        if not part:
            raise _Died(_cause(child.wait()))
        found += part
    return bytes(found)


def _cause(code: int) -> str:
    if code == -signal.SIGXCPU:
        return "reading it takes more CPU time than a file of its size may"
    with suppress(ValueError):
        return f"the process that reads it died of {signal.Signals(-code).name}"
    return f"the process that reads it ended with exit code {code}"
