"""Which ports the processes of this machine listen on, as far as this user may see: /proc/net and /proc/PID/fd.

Comes in: pieces of command lines. Goes out: an address and a port each. Decision: read from /proc, so that no program and no
package is needed; where there is no /proc, nothing is found.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_LISTEN = "0A"


@dataclass(frozen=True)
class Listener:
    """A TCP port that is listened on, and at which address."""

    address: str
    port: int


def listeners_of(pieces: Sequence[str]) -> list[Listener]:
    """Of the processes whose command line has one of `pieces` in it."""
    inodes: set[str] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            if any(piece in command for piece in pieces):
                inodes |= set(_sockets(folder / "fd"))
    return [listener for inode, listener in _all() if inode in inodes]


def _sockets(folder: Path) -> Iterator[str]:
    """Inodes of the sockets among the descriptors in `folder`."""
    for path in folder.iterdir():
        with suppress(OSError):
            target = os.readlink(path)
            if target.startswith("socket:["):
                yield target[len("socket:[") : -1]


def _all() -> Iterator[tuple[str, Listener]]:
    """(inode, listener) of every socket of this network namespace that listens."""
    for name in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN:
                    host, _, port = fields[1].partition(":")
                    yield fields[9], Listener(_address(host), int(port, 16))


def _address(text: str) -> str:
    """/proc writes addresses as 32-bit words in the machine's own byte order."""
    words = bytes.fromhex(text)
    ordered = b"".join(words[start : start + 4][::-1] for start in range(0, len(words), 4))
    found = ipaddress.ip_address(ordered)
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)
