"""What happens between two optimizer steps besides the next one: nothing, a checkpoint, or a checkpoint and the end.

Comes in: the time since the last checkpoint, and the driver's file of orders. Goes out: one order, the same on every rank.
Decision: the first rank decides and the others are told, in one broadcast of a number a step, because clocks and files are
read at other moments by each. The driver speaks by a file: ranks share its storage anyway, and a rank in the middle of a
step can take no call. It is opened each time: on NFS that alone asks the server whether it has changed.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import torch

from raydpo.artifacts.elsewhere import heard, is_home, tell
from raydpo.artifacts.mirror_path import url_of
from raydpo.train.run_feeds import Rank

GO_ON, SAVE, STOP = 0, 1, 2
"""Orders: the next step; a checkpoint first; a checkpoint and the end."""
_ASK_STORE_S = 5.0
"""Seconds between two questions of a rank on another node than the driver's, where they share an object store alone."""
_ORDERS, _WORD = "orders", "stop"
"""The driver's file in the staging folder of an attempt, and what it says once the run shall end."""


def order_stop(staging: Path) -> None:
    """Ask the ranks of the attempt with this staging folder to end at their next boundary. Safe in a signal handler."""
    (staging / _ORDERS).write_text(_WORD)
    tell(staging / _ORDERS, _WORD)


class Boundary:
    """Of one rank. staging: of its attempt. save_every_minutes: between checkpoints; None: no time."""

    def __init__(self, rank: Rank, device: torch.device, staging: Path, save_every_minutes: float | None) -> None:
        self._rank, self._device, self._orders = rank, device, staging / _ORDERS
        self._is_home, self._asked_s = is_home(staging) or url_of(staging) is None, time.monotonic()
        self._every_s = None if save_every_minutes is None else 60 * save_every_minutes
        self.restart()

    def restart(self) -> None:
        """A checkpoint was made: its time begins again."""
        self._since_s = time.monotonic()

    def order(self) -> int:
        """GO_ON, SAVE or STOP, the same on every rank. Collective."""
        found = self._own() if self._rank.rank == 0 else GO_ON
        if self._rank.num_ranks == 1:
            return found
        told = torch.tensor([found], device=self._device)
        torch.distributed.broadcast(told, src=0)
        return int(told)

    def _own(self) -> int:
        with suppress(OSError):
            if self._orders.read_text() == _WORD:
                return STOP
        if not self._is_home and time.monotonic() - self._asked_s >= _ASK_STORE_S:
            self._asked_s = time.monotonic()
            if heard(self._orders) == _WORD:
                return STOP
        is_due = self._every_s is not None and time.monotonic() - self._since_s >= self._every_s
        return SAVE if is_due else GO_ON
