"""What the process of one local actor does, from its fork on.

Comes in: a connection to the driver, on which it is asked to make an object and to call its methods. Goes out: answers and
events, in order. Decision: it ends when the driver closes the connection; where it cannot, because it hangs in native code,
its guard ends it (`fork_server`). Imports nothing heavy: the environment comes first.
"""

from __future__ import annotations

import os
import pickle
import queue
import threading
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import cloudpickle


def serve(connection: int) -> NoReturn:
    """Serve the driver at the other end of this descriptor until it goes away."""
    _Server(Connection(connection)).serve()


class _Server:
    """The main thread works; one thread hears the driver, one speaks to it, so that neither waits for the work."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._said: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._credits: dict[int, threading.Semaphore] = {}
        self._actor: Any = None

    def serve(self) -> NoReturn:
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
        self._credits.pop(number)
        self._say(number, "end", None)

    def _hear(self) -> None:
        while True:
            try:
                number, method, arguments, max_unread = pickle.loads(self._connection.recv_bytes())
            except (EOFError, OSError):
                os._exit(0)  # the driver is gone, or wants this actor no more
            if method == "credit":
                if (credit := self._credits.get(number)) is not None:
                    credit.release()
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
