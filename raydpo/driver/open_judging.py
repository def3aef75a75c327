"""A judging whose batches come one by one, so that a judge works while generators do.

Comes in: numbers of batches, each when its samples are durable. Goes out: a part of scores for each, and a committed piece.
Decision: one thread steps generators and judges, because roles that run in this process take turns anyway; part n is of batch
n, whoever was faster. A part of an earlier attempt counts if its rows carry the digests of what is shown now.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from raydpo import runtime
from raydpo.artifacts import digest_of
from raydpo.driver.judge_lots import JudgeLots
from raydpo.driver.judge_progress import JudgeProgress
from raydpo.driver.round_cut import RoundCut
from raydpo.judge.verdict import Row, Verdict
from raydpo.rundir.piece import Piece
from raydpo.rundir.piece_parts import Rows, table_of
from raydpo.schema.events import Observer, StageStarted
from raydpo.schema.round_rows import SCORES


class Verdicts(Protocol):
    """Who judges: actors, or a function of the caller."""

    max_failed_fraction: float
    is_stopped: bool

    @property
    def pool(self) -> runtime.Pool | None:
        """Of the actors that judge; None where the caller's function does, in this process."""
        ...

    def by_function(self, lot: Sequence[Row]) -> list[Verdict]:
        """Verdicts of the caller's function."""
        ...


class OpenJudging:
    """Begins `piece`. lots: what is shown; a batch is read once it is put. cut: says where the round ends; None: it has all of
    its prompts.

    num_failed: rows that this attempt found failed. busy_s: seconds that the judge worked.
    """

    def __init__(
        self, judge: Verdicts, piece: Piece, lots: JudgeLots, observer: Observer, cut: RoundCut | None
    ) -> None:
        self._judge, self._piece, self.lots, self.cut = judge, piece, lots, cut
        piece.begin()
        self._before, self._done = piece.numbers(), set[int]()
        self._waiting: deque[int] = deque()
        self.progress = JudgeProgress(observer, 0)
        self.num_failed, self.busy_s, self._since_s = 0, 0.0, 0.0
        observer(StageStarted("judge", lots.num_rows, "prompts"))
        if judge.pool is not None:
            judge.pool.begin(lots, are_there=False)

    def put(self, number: int) -> None:
        """The samples of a batch are there."""
        if self.cut is not None and self.cut.leaves_out(number):
            return
        if number in self._before:
            if self._is_of_what_is_shown(number):
                self._is_judged(number, self.lots.sizes[number])
                return
            self._piece.drop_part(number)
        if self._judge.pool is None:
            self._waiting.append(number)
            return
        if not self._num_in_actors:
            self._since_s = time.monotonic()
        self._judge.pool.put(number)

    @property
    def pools(self) -> list[runtime.Pool]:
        """What to wait for beside generators."""
        return [self._judge.pool] if self._judge.pool is not None and self._num_in_actors else []

    @property
    def has_own_work(self) -> bool:
        """Whether there is something to do in this process, for which nobody is to be waited for."""
        return bool(self._waiting) and not runtime.requested()

    @property
    def is_in_process(self) -> bool:
        """Whether this process is at work when `advance` is called."""
        return self._judge.pool is None or self._judge.pool.is_in_process

    @property
    def is_cut(self) -> bool:
        """Whether it is known where the round ends."""
        return self.cut is not None and self.cut.end is not None

    @property
    def is_at_work(self) -> bool:
        """Whether something that was put is not judged yet."""
        return bool(self._waiting or self._num_in_actors)

    @property
    def is_hopeless(self) -> bool:
        """Whether so many rows failed that the others cannot make it good."""
        return not self.is_cut and self.num_failed > self._judge.max_failed_fraction * self.lots.num_rows

    @property
    def has_all(self) -> bool:
        return len(self._done) == len(self.lots)

    def advance(self, timeout_s: float = 0.0) -> None:
        """Take in what actors have judged, or have one batch judged by the function."""
        began_s, pool = time.monotonic(), self._judge.pool
        if pool is None:
            if not self.has_own_work:
                return
            number = self._waiting.popleft()
            verdicts = self._judge.by_function(self.lots[number])
            self.busy_s += time.monotonic() - began_s
            self._write(number, verdicts)
            return
        if not self._num_in_actors:
            return
        for number, verdicts in pool.step(timeout_s):
            self._write(number, verdicts)
        if pool.is_in_process:
            self.busy_s += time.monotonic() - began_s
        elif not self._num_in_actors:
            self.busy_s += time.monotonic() - self._since_s

    def finish(self) -> None:
        """Judge what was put, until all is, or enough failed, or the run is asked to end."""
        while not self.is_hopeless and not self._judge.is_stopped and (self.has_own_work or self._num_in_actors):
            self.advance(timeout_s=5.0)

    @property
    def _num_in_actors(self) -> int:
        return 0 if self._judge.pool is None else self._judge.pool.num_unfinished

    def _is_of_what_is_shown(self, number: int) -> bool:
        rows, shown = self._piece.part(number), self.lots[number]
        return len(rows) == len(shown) and all(
            row.get("judged", digest := judged_digest(one)) == digest for row, one in zip(rows, shown, strict=True)
        )

    def _write(self, number: int, verdicts: Sequence[Verdict]) -> None:
        if self.cut is not None and self.cut.leaves_out(number):
            return  # it was in work when the round ended
        rows: Rows = [_row(*both) for both in zip(verdicts, self.lots[number], strict=True)]
        self._piece.write_part(number, table_of(rows, SCORES))
        self.num_failed += sum(verdict.scores is None for verdict in verdicts)
        self._is_judged(number, len(verdicts))

    def _is_judged(self, number: int, num_rows: int) -> None:
        self._done.add(number)
        self.progress.judged(number, num_rows)
        if self.cut is None:
            return
        self.cut.judged(number)
        if self.cut.end is not None:
            self._end_at(self.cut.end)

    def _end_at(self, end: int) -> None:
        """The first `end` batches are all; what was judged of others is forgotten."""
        for number in self._piece.numbers():
            if number >= end:
                self._piece.drop_part(number)
        self._done = {number for number in self._done if number < end}
        self.lots = self.lots.first(end)
        self._waiting.clear()
        if self._judge.pool is not None:
            self._judge.pool.drop_waiting()


def _row(verdict: Verdict, shown: Row) -> dict[str, Any]:
    scores = None if verdict.scores is None else list(verdict.scores)
    return {"judged": judged_digest(shown), "scores": scores, "reason": verdict.reason}


def judged_digest(shown: Row) -> str:
    """What the scores of a row are found again by: 32 hex digits over the prompt and its answers."""
    prompt, answers = shown
    return digest_of([prompt, *answers])[:32]
