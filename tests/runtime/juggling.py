"""Workers that have several items in work: an item is the number of steps that it takes."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any


class Juggler:
    """room: items in work at a time. log: gets a line for every step, the items in work. poison: item at whose step it dies;
    deaths: how often, in all its lives.
    """

    takes_several = True

    def __init__(self, folder: str, room: int, poison: int = -1, deaths: int = 0) -> None:
        self._folder, self._room, self._poison, self._deaths = Path(folder), room, poison, deaths
        self._left: dict[int, int] = {}

    def __call__(self, message: Any) -> Any:
        return message, os.getpid()

    def take(self, number: int, item: int) -> None:
        if item < 0:
            raise ZeroDivisionError("an item of less than no step")
        self._left[number] = item

    def ended(self, may_come_more: bool) -> list[tuple[int, Any]]:
        done: list[tuple[int, Any]] = []
        while self._left and not done and not (may_come_more and len(self._left) < self._room):
            with open(self._folder / "steps.txt", "a") as file:
                file.write(f"{os.getpid()} {' '.join(map(str, self._left))}\n")
            self._die_perhaps()
            self._left = {number: left - 1 for number, left in self._left.items()}
            done = [(number, os.getpid()) for number, left in self._left.items() if not left]
            self._left = {number: left for number, left in self._left.items() if left}
        return done

    def _die_perhaps(self) -> None:
        marks = len(list(self._folder.glob("death-*")))
        if self._poison in self._left and self._left[self._poison] == 2 and marks < self._deaths:
            (self._folder / f"death-{marks}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
