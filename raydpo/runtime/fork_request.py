"""What the driver asks of a fork server: one actor, with the descriptors that it and its guard work with.

What comes in: a request and a socket. What goes out: the same request in the other process.
Decision: four bytes of length carry the descriptors, and JSON follows them; both fit into the socket's buffer, so that
the driver does not wait for a server that still imports.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass

_LENGTH_BYTES = 4


@dataclass(frozen=True)
class ForkRequest:
    """One actor.

    kind: name of the class, for people who look at processes.
    devices: CUDA_VISIBLE_DEVICES of the actor.
    connection: the actor's end of the socket pair to the driver.
    log: a file for its output.
    life: reading end of a pipe that the driver holds open while the actor is wanted.
    status: writing end of a pipe for the actor's pid and, at its end, its exit code.
    """

    kind: str
    devices: str
    connection: int
    log: int
    life: int
    status: int

    def close(self) -> None:
        """Close all descriptors in this process."""
        for descriptor in (self.connection, self.log, self.life, self.status):
            os.close(descriptor)

    def send(self, server: socket.socket) -> None:
        """Hand it over, with copies of the descriptors. Raises OSError when nobody is there."""
        text = json.dumps([self.kind, self.devices]).encode()
        descriptors = [self.connection, self.log, self.life, self.status]
        socket.send_fds(server, [len(text).to_bytes(_LENGTH_BYTES, "big")], descriptors)
        server.sendall(text)


def receive_request(driver: socket.socket) -> ForkRequest | None:
    """The next request; None when the driver is gone. Nothing that an actor executes inherits the descriptors."""
    length, descriptors, _, _ = socket.recv_fds(driver, _LENGTH_BYTES, 4)
    if not length:
        return None
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    text = b""
    while len(text) < int.from_bytes(length, "big"):
        part = driver.recv(int.from_bytes(length, "big") - len(text))
        if not part:
            return None
        text += part
    kind, devices = json.loads(text)
    return ForkRequest(kind, devices, *descriptors)
