"""The process of one local actor: `python -m raydpo.runtime.local_actor KIND CONNECTION LIFE`.

Comes in: a connection to the driver, on which it is asked to make an object and to call its methods, and the reading end
of a pipe that the driver holds open while it lives. (KIND is for people who look at processes.) Goes out: answers and
events, in order.
Decision: the process leads a session of its own, and a guard in it, which does nothing but wait for the end of that pipe,
then kills the whole session: the driver may die in any way, and what the actor started goes along, even if the actor
itself hangs in native code. The price is one small process an actor. Imports nothing heavy: the environment comes first.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle


def main() -> None:
    """Serve until the driver goes away."""
    connection, life = int(sys.argv[2]), int(sys.argv[3])
    _leave_guard(connection, life)
    _Server(Connection(connection)).serve()


def _leave_guard(connection: int, life: int) -> None:
    """Fork the guard. It returns in the actor only."""
    if os.fork():
        os.close(life)
        return
    os.close(connection)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while os.read(life, 1):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


class _Server:
    """The main thread works; one thread hears the driver, one speaks to it, so that neither waits for the work."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._said: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._credits: dict[int, threading.Semaphore] = {}
        self._actor: Any = None

    def serve(self) -> None:
        for work in (self._hear, self._speak):
            threading.Thread(target=work, daemon=True).start()
        while True:
            number, method, arguments, max_unread = self._asked.get()
            try:
                if method == "make":
                    self._actor = arguments[0]()
                    continue
                answer = getattr(self._actor, method)(*arguments)
            except Exception:  # noqa: BLE001 - methods of ours return what users raise; whatever else happened is said
                self._say(number, "failed", traceback.format_exc())
                continue
            if isinstance(answer, Iterator):
                self._tell(number, answer, max_unread)
            else:
                self._say(number, "answer", answer)

    def _tell(self, number: int, events: Iterator[Any], max_unread: int | None) -> None:
        """Send events as they come, no more than `max_unread` of them unread."""
        credit = self._credits[number] = threading.Semaphore(max_unread or 0)
        for event in events:
            if max_unread is not None:
                credit.acquire()
            self._say(number, "event", event)
        self._say(number, "end", None)

    def _hear(self) -> None:
        while True:
            try:
                number, method, arguments, max_unread = pickle.loads(self._connection.recv_bytes())
            except (EOFError, OSError):
                os._exit(0)  # the driver is gone, or wants this actor no more
            if method == "credit":
                if number in self._credits:
                    self._credits[number].release()
            else:
                self._asked.put((number, method, arguments, max_unread))

    def _say(self, number: int, kind: str, value: Any) -> None:
        try:
            message = cloudpickle.dumps((number, kind, value))
        except Exception as error:  # noqa: BLE001 - what cannot travel may raise anything
            text = f"{type(error).__name__}: {error} (the result could not be pickled)"
            message = cloudpickle.dumps((number, "failed", text))
        self._said.put(message)

    def _speak(self) -> None:
        while True:
            try:
                self._connection.send_bytes(self._said.get())
            except OSError:
                os._exit(0)


if __name__ == "__main__":
    main()
