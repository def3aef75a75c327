"""How far a judging is, for the person who watches: prompts, requests to a server, and those that are sent again.

Comes in: news of judge workers, each with the number of its batch of rows. Goes out: events of the stage `judge`.
Decision: every request that is sent again is told, but a thousand of them in a few lines: the first at once, those of the
next half minute together, and all of them as a number at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from raydpo.judge.asked import Asked, Judged
from raydpo.schema.events import Advanced, Note, Observer

LINE_EVERY_S = 30.0


class JudgeProgress:
    """done: prompts that were judged before. clock: in seconds."""

    def __init__(self, observer: Observer, done: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._observer, self._done, self._clock = observer, done, clock
        self._rows: dict[int, int] = {}
        self._asked: dict[int, Asked] = {}
        self._num_unsaid, self._line_s = 0, -float("inf")

    @property
    def num_again(self) -> int:
        """Requests that were sent again so far."""
        return sum(asked.num_again for asked in self._asked.values())

    def hear(self, lot: int, event: Asked | Judged) -> None:
        """News of the batch of rows with this number."""
        if isinstance(event, Judged):
            self._rows[lot] = event.num_rows
        else:
            self._asked[lot] = event
            self._say(event.line)
        self._advance()

    def judged(self, lot: int, num_rows: int) -> None:
        """The batch is done."""
        self._rows.pop(lot, None)
        self._done += num_rows
        self._advance()

    def _advance(self) -> None:
        asked = self._asked.values()
        requests = {"requests": float(sum(a.done for a in asked)), "of": float(sum(a.total for a in asked))}
        self._observer(Advanced("judge", self._done + sum(self._rows.values()), requests if asked else {}))

    def _say(self, line: str) -> None:
        if not line:
            return
        self._num_unsaid += 1
        if self._clock() - self._line_s >= LINE_EVERY_S:
            others = self._num_unsaid - 1
            also = f" ({others} more {'were' if others > 1 else 'was'} sent again since the last such line)" * bool(
                others
            )
            self._line_s, self._num_unsaid = self._clock(), 0
            self._observer(Note("warning", f"judge: {line}{also}"))
