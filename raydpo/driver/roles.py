"""Who samples and who judges in a run of rounds, and what it cost: work asked of them becomes a committed piece.

Comes in: requests and rows. Goes out: the parts that the piece lacked. Decision: the producer and the evaluator, which may
work in two threads, know of actors nothing but this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pyarrow as pa

from raydpo.driver.beside import JudgedBeside
from raydpo.driver.busy import Busy
from raydpo.driver.generators import Generators, Policy
from raydpo.driver.judge_lots import JudgeLots
from raydpo.driver.judges import Judging
from raydpo.driver.open_judging import OpenJudging
from raydpo.driver.round_cut import RoundCut
from raydpo.driver.turns import Turns
from raydpo.rundir.piece import Piece
from raydpo.rundir.piece_parts import table_of
from raydpo.runtime import deferred
from raydpo.schema.events import Advanced, Observer, StageDone, StageStarted
from raydpo.schema.round_rows import SAMPLES
from raydpo.schema.samples import Generate, Generated, Prompt


@dataclass
class WantedSamples:
    """Samples that are wanted as a committed piece, a part for each request.

    prompts: of all requests, in their order. cut: ends the round before the last request, None: it has all of them.
    """

    piece: Piece
    policy: Policy
    requests: Sequence[Generate]
    prompts: Sequence[Prompt]
    meta: Mapping[str, Any]
    cut: RoundCut | None = None
    is_whole: bool = False

    def __post_init__(self) -> None:
        sizes = (len(request.prompts) for request in self.requests)
        self._starts = [0, *accumulate(sizes)]

    def lot(self, number: int) -> Sequence[Prompt]:
        """The prompts of a request."""
        return self.prompts[self._starts[number] : self._starts[number + 1]]

    def missing(self) -> list[int]:
        """Requests that have no part, of those that count."""
        there, end = self.piece.numbers(), None if self.cut is None else self.cut.end
        return [number for number in range(len(self.requests))[:end] if number not in there]

    def commit_if_whole(self) -> bool:
        """Commit if all requests have their parts; whether they have."""
        self.is_whole = not self.missing() and (self.cut is None or self.cut.end is not None)
        if self.is_whole:
            self.piece.commit({"version": self.policy.version, **self.meta, **self._ended()})
        return self.is_whole

    def _ended(self) -> dict[str, int]:
        """Where the round ended; parts beyond it are forgotten."""
        if self.cut is None or self.cut.end is None:
            return {}
        for number in sorted(self.piece.numbers()):
            if self.cut.leaves_out(number):
                self.leave_out(number)
                self.piece.drop_part(number)
        return {"prompts": self._starts[self.cut.end], "not_used": self.cut.num_not_used}

    def leave_out(self, number: int) -> None:
        """Count the samples of a request that does not count."""
        assert self.cut is not None
        request = self.requests[number]
        self.cut.num_not_used += len(request.prompts) * request.sampling.num_answers


@dataclass(frozen=True)
class OpenScores:
    """Where scores go while samples come. piece: takes the parts. lots: what is shown, a batch for each part of samples.
    committed: the same piece, once it is known which samples they are of."""

    piece: Piece
    lots: JudgeLots
    committed: Callable[[], Piece]


@dataclass(frozen=True)
class Roles:
    """The actors of a round, and what is done with them.

    generators: actors that sample and score.
    judging: what scores answers.
    busy: seconds that each role worked.
    observer: callback for events.
    rows_per_lot: prompts that a judge gets in one batch, and a generator at a time.
    """

    generators: Generators
    judging: Judging
    busy: Busy
    observer: Observer
    rows_per_lot: int

    def sample(self, wanted: WantedSamples) -> None:
        """Have the policy answer the requests that lack a part, and commit."""
        self._begin(wanted)
        with deferred():
            for _ in self._answered(wanted):
                pass
            wanted.commit_if_whole()
        self._say_sampled(wanted)

    def sample_and_judge(self, wanted: WantedSamples, scores: OpenScores, turns: Turns) -> None:
        """The same, and each part is judged as soon as it is written. Raises JudgeError for too many failures. turns: is told
        who works."""
        self._begin(wanted)
        judged = self.judging.opened(scores.piece, scores.lots, self.observer, wanted.cut)
        try:
            with deferred():
                turns.to("sample")
                for number in sorted(wanted.piece.numbers()):
                    judged.put(number)
                for number in self._answered(wanted, JudgedBeside(judged, turns, wanted.missing())):
                    judged.put(number)
                if wanted.cut is not None:  # before it is known where the round ends, nothing is committed
                    self._judge_rest(judged, turns)
                    self.judging.failed(scores.piece, judged.lots.num_rows)
                if wanted.commit_if_whole():
                    self._say_sampled(wanted)
                self._judge_rest(judged, turns)
                if wanted.is_whole or judged.is_hopeless:
                    piece = scores.committed() if wanted.is_whole else scores.piece
                    self.judging.commit(piece, judged, self.observer)
        finally:
            turns.end()
            self.busy.add("judge", judged.busy_s)

    @staticmethod
    def _judge_rest(judged: OpenJudging, turns: Turns) -> None:
        turns.to("judge")
        judged.finish()

    @property
    def can_judge_meanwhile(self) -> bool:
        """Whether a judge may work while generators do: not where it needs a GPU that they hold."""
        return not (self.judging.needs_gpu and self.generators.shares_gpus)

    def _begin(self, wanted: WantedSamples) -> None:
        self.generators.hold(wanted.policy)
        wanted.piece.begin()
        self.observer(StageStarted("generate", len(wanted.prompts), "prompts"))

    def _answered(self, wanted: WantedSamples, beside: JudgedBeside | None = None) -> Iterator[int]:
        """Number of each part that is written now."""
        missing = wanted.missing() if beside is None else beside.numbers
        done = len(wanted.prompts) - sum(len(wanted.requests[number].prompts) for number in missing)
        requests = [wanted.requests[number] for number in missing]
        for index, answer in self.generators.generate(requests, beside):
            number = missing[index]
            lot = wanted.lot(number)
            self.busy.sampled(answer)
            if wanted.cut is not None and wanted.cut.leaves_out(number):
                wanted.leave_out(number)
                continue
            wanted.piece.write_part(number, _table(lot, answer))
            done += len(lot)
            self.observer(Advanced("generate", done))
            yield number

    def _say_sampled(self, wanted: WantedSamples) -> None:
        number = wanted.piece.meta.get("prompts", len(wanted.prompts))
        self.observer(StageDone("generate", f"{number} prompts, policy {wanted.policy.version}"))

    def judge(self, piece: Piece, lots: JudgeLots) -> None:
        """Have the lots that the piece lacks judged, and commit. Raises JudgeError for too many failures."""
        if self.judging.needs_gpu:
            self.generators.make_room()
        with self.busy.working("judge"), deferred():
            self.judging.judge(piece, lots, self.observer)


def _table(prompts: Sequence[Prompt], answer: Generated) -> pa.Table:
    rows = [
        {
            "prompt": prompt.key,
            "version": answer.version,
            "samples": [{"ids": each.ids, "text": each.text, "ending": each.ending} for each in samples],
        }
        for prompt, samples in zip(prompts, answer.answers, strict=True)
    ]
    return table_of(rows, SAMPLES)
