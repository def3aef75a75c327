"""The judge of a run: a function of the caller, in this process; or what the config names, in actors.

Comes in: lists of (prompt, responses). Goes out: a verdict each. Decision: a function that is handed in is called here, so
that it may print, count and hold connections; what must survive its own death is named in the config and runs in actors.
Those stand until the end of the run. One that holds a GPU, or a model for which there is no room, gives it back after each
judging, if trainers work on the same devices.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

from raydpo import runtime
from raydpo.config.round_sections import JudgeSection
from raydpo.driver.actors import libraries_of, worker_limits
from raydpo.driver.judge_lots import JudgeLots
from raydpo.driver.judge_progress import JudgeProgress
from raydpo.driver.judge_worker import make_judge_worker
from raydpo.driver.ledger import Ledger
from raydpo.driver.open_judging import OpenJudging
from raydpo.driver.round_cut import RoundCut
from raydpo.errors import Cause, JudgeError, WorkerError
from raydpo.generate.engine import EngineSpec
from raydpo.judge.deadline import OutOfTime, within
from raydpo.judge.judge_inputs import Models, find_models, inputs_of, is_comparative, runs_named_code, shows_marks
from raydpo.judge.pairwise import looks_like_marks
from raydpo.judge.verdict import Judge, Row, Verdict, judge_rows
from raydpo.rundir.piece import Piece
from raydpo.schema.events import Note, Observer, StageDone, ignore
from raydpo.schema.samples import Sample

_ENDED = "judge: the run ended while there were prompts to judge."


class Judging:
    """What judges.

    judge: a function of the caller; of the section then only the bounds on failures and on time count.
    section: the section `judge`, None without one.
    engine: how a language model that the judge loads itself is loaded (its `model` is not read).
    is_colocated: it works while trainers do not, on their devices.
    ledger: what is started and loaded is counted there.

    is_stopped: nothing is to be judged any more.
    stands: set to False where models of the judge must not stay beside those of the other roles.
    """

    def __init__(
        self,
        judge: Judge | None,
        section: JudgeSection | None,
        engine: EngineSpec,
        *,
        is_colocated: bool = True,
        ledger: Ledger | None = None,
    ) -> None:
        self._judge, self._section, self._engine = judge, section, engine
        self._is_colocated, self._ledger = is_colocated, ledger or Ledger()
        self.stands = True
        self._pool: runtime.Pool | None = None
        self.is_stopped = False
        self.needs_gpu = section is not None and section.gpus_per_worker > 0
        self.is_comparative = section is not None and is_comparative(section)
        given = JudgeSection(kind="function") if section is None else section
        self.max_failed_fraction, self._row_timeout_s = given.max_failed_fraction, given.row_timeout_s
        self._progress = JudgeProgress(ignore, 0)

    def stop(self) -> None:
        """End the actors, and, at its next batch of rows, a function of the caller that another thread calls."""
        self.is_stopped = True
        if self._pool is not None:
            self._pool.close()

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What verdicts depend on, as far as one can know: of a function only its name. Hashes files at the first use."""
        if self._judge is not None:
            name = getattr(self._judge, "__qualname__", type(self._judge).__qualname__)
            return {"kind": "handed in", "function": name}
        return {"kind": None} if self._section is None else inputs_of(self._section, self.models)

    @cached_property
    def models(self) -> Models:
        """Those that each of its actors loads, by name."""
        return {} if self._section is None else find_models(self._section)

    def by_function(self, lot: Sequence[Row]) -> list[Verdict]:
        """Verdicts of the caller's function, which cannot be ended for good as an actor can: time out ends the round."""
        judge = self._judge
        assert judge is not None
        parts = [lot] if hasattr(judge, "many") else [[row] for row in lot]
        try:
            return [
                verdict
                for rows in parts
                for verdict in within(
                    self._row_timeout_s * len(rows), partial(judge_rows, judge, rows), lambda: self.is_stopped
                )
            ]
        except OutOfTime:
            if self.is_stopped:
                raise WorkerError(_ENDED, Cause.ENDED) from None
            name = getattr(judge, "__qualname__", type(judge).__qualname__)
            raise JudgeError(
                f"the function {name} that was handed in as judge had {self._row_timeout_s:g} s for each prompt and did not "
                "finish; the round would have waited for it without an end. What was judged before is kept. Repair it, or give "
                "it more time (judge: {kind: function, timeout_s: ...}), and run the same command."
            ) from None

    @property
    def pool(self) -> runtime.Pool | None:
        """Its actors, which start when there is work; None where a function of the caller judges."""
        return None if self._judge is not None or self._section is None else self._actors()

    def attach(self) -> None:
        """Its actors, of which none starts now, are of the session that is open: a training beside it may open another one."""
        _ = self.pool

    def _actors(self) -> runtime.Pool:
        section = self._section
        assert section is not None
        if self._pool is None:
            self._pool = runtime.Pool(
                "judge",
                partial(make_judge_worker, section, self._engine, self.models),
                num_workers=section.num_workers,
                cpus=0,  # it shares the CPUs with whoever trains meanwhile; a GPU is reserved
                # Code that the config names may hang, and only a process of its own can be ended then.
                own_process=runs_named_code(section) or (bool(self.models) and self._engine.engine != "transformers"),
                preload=self._libraries(),
                hear=lambda index, event: self._progress.hear(index, event),
                placed=self._ledger.at_place("judge", loads=bool(self.models)),
                **worker_limits(section, "judge"),
            )
        if self.is_stopped:  # before there was a pool to close
            self._pool.close()
        return self._pool

    def _libraries(self) -> Sequence[str]:
        """Nobody knows what a function imports; where this process has torch already, those of several actors may need it."""
        if self.models:
            return libraries_of(self._engine.engine)
        several = self._section is not None and self._section.num_workers > 1
        return libraries_of() if several and "torch" in sys.modules else ()

    def opened(self, piece: Piece, lots: JudgeLots, observer: Observer, cut: RoundCut | None = None) -> OpenJudging:
        """Begin to judge `lots`, each once it is put."""
        found = OpenJudging(self, piece, lots, observer, cut)
        self._progress = found.progress
        return found

    def judge(self, piece: Piece, lots: JudgeLots, observer: Observer) -> None:
        """Judge what the piece lacks, a part for each batch, and commit. Raises JudgeError for too many failures."""
        judged = self.opened(piece, lots, observer)
        for number in range(len(lots)):
            judged.put(number)
        judged.finish()
        self.commit(piece, judged, observer)

    def commit(self, piece: Piece, judged: OpenJudging, observer: Observer) -> None:
        """Commit what is judged, and give back what is not to stand. Raises JudgeError for too many failures, WorkerError where
        something was not judged."""
        num_rows = judged.lots.num_rows
        failed = self.failed(piece, num_rows)
        if self.is_stopped or not judged.has_all:
            raise WorkerError(_ENDED, Cause.ENDED)
        piece.commit({"failed": failed, **self._marks(judged.lots, observer)})
        if self._pool is not None and self._is_colocated and (self.needs_gpu or (self.models and not self.stands)):
            self._pool.stop()
        number = judged.progress.num_again
        again = f", {number} request{'s' if number > 1 else ''} sent again" * bool(number)
        observer(StageDone("judge", f"{num_rows} prompts" + (f", {failed} failed" if failed else "") + again))

    def _marks(self, lots: JudgeLots, observer: Observer) -> dict[str, int]:
        """How many answers speak to a judge that is a language model; said where there are any."""
        if self._judge is not None or self._section is None or not shows_marks(self._section):
            return {}
        number = num_answers = 0
        for lot in lots:
            for _, answers in lot:
                num_answers += len(answers)
                number += sum(map(looks_like_marks, answers))
        if number:
            observer(
                Note(
                    "warning",
                    f"judge: {number:,} of {num_answers:,} answers hold text that looks like the marks of the question, or "
                    "tells the judge what to reply. They were shown between marks that no answer can know, and judged as text; "
                    "a policy whose answers do that more and more learns to persuade the judge",
                )
            )
        return {"answers_with_marks": number}

    def failed(self, piece: Piece, num_rows: int) -> int:
        """How many rows failed. Raises JudgeError for too many, and forgets their parts, which are then asked again."""
        reasons: list[str] = []
        bad: list[int] = []
        num_failed = 0
        for number, rows in piece.uncommitted():
            found = [row["reason"] for row in rows if row["scores"] is None]
            num_failed += len(found)
            reasons = [*reasons, *found][:3]
            bad += [number] if found else []
        if num_failed > self.max_failed_fraction * num_rows:
            for number in bad:
                piece.drop_part(number)
            beside = "" if self._judge is None else " (judge: {kind: function, max_failed_fraction: ...})"
            raise JudgeError(
                f"the judge failed on {num_failed} of {num_rows} prompts, and judge.max_failed_fraction allows "
                f"{self.max_failed_fraction:.1%}. A failed prompt has no score, and pairs of what is left would be another "
                f"selection. First reasons: {'; '.join(dict.fromkeys(reasons))}. Fix the judge or raise the bound{beside} "
                "and run the same command: what was judged is kept, what failed is asked again."
            )
        return num_failed


def texts(samples: Sequence[Sample]) -> list[str]:
    """What a judge reads."""
    return [sample.text for sample in samples]
