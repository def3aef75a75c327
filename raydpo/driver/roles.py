"""Who samples and who judges in a run of rounds, and what it cost: work asked of them becomes a committed piece.

Comes in: requests and rows. Goes out: the parts that the piece lacked. Decision: the producer and the evaluator, which may
work in two threads, know of actors nothing but this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raydpo.driver.busy import Busy
from raydpo.driver.generators import Generators, Policy
from raydpo.driver.judge_lots import JudgeLots
from raydpo.driver.judges import Judging
from raydpo.rundir.piece import Piece
from raydpo.rundir.piece_parts import table_of
from raydpo.runtime import deferred
from raydpo.schema.events import Advanced, Observer, StageDone, StageStarted
from raydpo.schema.round_rows import SAMPLES
from raydpo.schema.samples import Generate, Generated, Prompt


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

    def sample(
        self,
        piece: Piece,
        policy: Policy,
        requests: Sequence[Generate],
        prompts: Sequence[Prompt],
        meta: Mapping[str, Any],
    ) -> None:
        """Have `policy` answer the requests that the piece lacks, a part each, and commit. prompts: of all requests."""
        self.generators.hold(policy)
        piece.begin()
        there = piece.numbers()
        missing = [number for number in range(len(requests)) if number not in there]
        starts = [0]
        for request in requests:
            starts.append(starts[-1] + len(request.prompts))
        self.observer(StageStarted("generate", len(prompts), "prompts"))
        done = len(prompts) - sum(len(requests[number].prompts) for number in missing)
        with deferred():
            for index, answer in self.generators.generate([requests[number] for number in missing]):
                number = missing[index]
                lot = prompts[starts[number] : starts[number + 1]]
                piece.write_part(number, _table(lot, answer))
                self.busy.sampled(answer)
                done += len(lot)
                self.observer(Advanced("generate", done))
            if done == len(prompts):
                piece.commit({"version": policy.version, **meta})
        self.observer(StageDone("generate", f"{len(prompts)} prompts, policy {policy.version}"))

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
