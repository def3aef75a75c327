"""Where the ranks of one machine find each other: torch's store, on the loopback interface alone.

Comes in: MASTER_ADDR, MASTER_PORT, RANK and WORLD_SIZE, which a gang sets. Goes out: an address for
`torch.distributed.init_process_group`. Decision: torch's own store listens on all interfaces, whatever MASTER_ADDR says, so
rank 0 hands it a socket that is bound already. Ranks on several nodes meet as torch does it.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from torch.distributed import TCPStore, register_rendezvous_handler  # type: ignore[attr-defined]

LOOPBACK = "127.0.0.1"
_SCHEME = "raydpo-loopback"


def init_method() -> str | None:
    """Address of the store; None for torch's own way of reading the environment."""
    return f"{_SCHEME}://" if os.environ.get("MASTER_ADDR") == LOOPBACK else None


def _meet(_: str, timeout: timedelta, **__: Any) -> Iterator[tuple[TCPStore, int, int]]:
    rank, num_ranks, port = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    store = TCPStore(
        LOOPBACK,
        port,
        num_ranks,
        is_master=rank == 0,
        timeout=timeout,
        multi_tenant=True,
        master_listen_fd=None if rank else _listener(port),
        use_libuv=True,
    )
    yield store, rank, num_ranks
    raise RuntimeError("the ranks of a gang meet once")


def _listener(port: int) -> int | None:
    """Descriptor of a socket on the loopback interface, which the store takes over. None where the port is taken: by a store of
    this process, which is shared then, or torch says that it is."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
            listener.listen()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return None
        return listener.detach()


register_rendezvous_handler(_SCHEME, _meet)  # type: ignore[no-untyped-call]
