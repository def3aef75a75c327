"""The judge of a run: a function of the caller, in this process; or what the config names, in actors.

Comes in: lists of (prompt, responses). Goes out: a verdict each. Decision: a function that is handed in is called here, so
that it may print, count and hold connections; what must survive its own death is named in the config and runs in actors.
Those stand until the end of the run. One that loads a model gives its memory back after each judging, if trainers work on
the same devices.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from raydpo import runtime
from raydpo.config.round_sections import JudgeSection
from raydpo.driver.actors import libraries_of
from raydpo.errors import JudgeError, WorkerError
from raydpo.generate.engine import EngineSpec
from raydpo.judge.build import build_judge
from raydpo.judge.judge_inputs import Models, find_models, inputs_of, is_comparative, local_model
from raydpo.judge.verdict import Judge, Row, Verdict, judge_rows
from raydpo.rundir.piece import Piece
from raydpo.schema.events import Advanced, Observer, StageDone, StageStarted
from raydpo.schema.samples import Sample


class Judging:
    """What judges.

    judge: a function of the caller; of the section then only the bound on failures counts.
    section: the section `judge`, None without one.
    engine: how a language model that the judge loads itself is loaded (its `model` is not read).
    is_colocated: it works while trainers do not, on their devices.
    """

    def __init__(
        self, judge: Judge | None, section: JudgeSection | None, engine: EngineSpec, *, is_colocated: bool = True
    ) -> None:
        self._judge, self._section, self._engine = judge, section, engine
        self._is_colocated = is_colocated
        self._pool: runtime.Pool | None = None
        self._is_stopped = False
        self.needs_gpu = section is not None and section.gpus_per_worker > 0
        self.is_comparative = section is not None and is_comparative(section)
        given = JudgeSection(kind="function") if section is None else section
        self.max_failed_fraction = given.max_failed_fraction

    def stop(self) -> None:
        """End the actors, and, at its next batch of rows, a function of the caller that another thread calls."""
        self._is_stopped = True
        if self._pool is not None:
            self._pool.close()

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What verdicts depend on, as far as one can know: of a function only its name. Hashes files at the first use."""
        if self._judge is not None:
            name = getattr(self._judge, "__qualname__", type(self._judge).__qualname__)
            return {"kind": "handed in", "function": name}
        return {"kind": None} if self._section is None else inputs_of(self._section, self._models)

    @cached_property
    def _models(self) -> Models:
        return {} if self._section is None else find_models(self._section)

    def verdicts(self, lots: Sequence[Sequence[Row]]) -> Iterator[tuple[int, list[Verdict]]]:
        """(index of the batch, a verdict for each of its rows), in the order they finish."""
        if self._judge is not None:
            yield from ((index, judge_rows(self._judge, lot)) for index, lot in enumerate(lots))
            return
        pool = self._actors()
        yield from pool.run(lots)
        if self._is_colocated and (self.needs_gpu or self._models):
            pool.stop()

    def _actors(self) -> runtime.Pool:
        section = self._section
        assert section is not None
        if self._pool is None:
            self._pool = runtime.Pool(
                "judge",
                partial(_make_worker, section, self._engine, self._models),
                num_workers=section.num_workers,
                cpus=0,  # it shares the CPUs with whoever trains meanwhile; a GPU is reserved
                threads=section.cpus_per_worker,
                gpus=section.gpus_per_worker,
                max_retries=section.max_retries,
                hang_timeout_s=section.hang_timeout_s,
                hang_key="judge.hang_timeout_s",
                own_process=bool(self._models) and self._engine.engine != "transformers",
                preload=self._libraries(),
            )
        if self._is_stopped:  # before there was a pool to close
            self._pool.close()
        return self._pool

    def _libraries(self) -> Sequence[str]:
        """Nobody knows what a function imports; where this process has torch already, the function's may need it."""
        if self._models:
            return libraries_of(self._engine.engine)
        return libraries_of() if "torch" in sys.modules else ()

    def judge(self, piece: Piece, lots: Sequence[Sequence[Row]], observer: Observer) -> None:
        """Judge what the piece lacks, a part for each batch, and commit. Raises JudgeError for too many failures."""
        piece.begin()
        missing = [number for number in range(len(lots)) if not piece.has_part(number)]
        observer(StageStarted("judge", sum(map(len, lots)), "prompts"))
        done = sum(len(lot) for number, lot in enumerate(lots) if number not in missing)
        for index, verdicts in self.verdicts([lots[number] for number in missing]):
            piece.write_part(missing[index], [_row(verdict) for verdict in verdicts])
            done += len(verdicts)
            observer(Advanced("judge", done))
            if self._is_stopped:
                raise WorkerError("judge: the run ended while there were prompts to judge.")
        failed = self._failed(piece, len(lots), sum(map(len, lots)))
        piece.commit({"failed": failed})
        observer(StageDone("judge", f"{sum(map(len, lots))} prompts" + (f", {failed} failed" if failed else "")))

    def _failed(self, piece: Piece, num_lots: int, num_rows: int) -> int:
        """How many rows failed. Too many: forget the parts that hold them, so that the same command asks again."""
        reasons: list[str] = []
        bad: list[int] = []
        for number in range(num_lots):
            found = [row["reason"] for row in piece.uncommitted(number) if row["scores"] is None]
            reasons += found
            bad += [number] if found else []
        if len(reasons) > self.max_failed_fraction * num_rows:
            for number in bad:
                piece.drop_part(number)
            beside = "" if self._judge is None else " (judge: {kind: function, max_failed_fraction: ...})"
            raise JudgeError(
                f"the judge failed on {len(reasons)} of {num_rows} prompts, and judge.max_failed_fraction allows "
                f"{self.max_failed_fraction:.1%}. A failed prompt has no score, and pairs of what is left would be another "
                f"selection. First reasons: {'; '.join(dict.fromkeys(reasons[:3]))}. Fix the judge or raise the bound{beside} "
                "and run the same command: what was judged is kept, what failed is asked again."
            )
        return len(reasons)


def _row(verdict: Verdict) -> dict[str, Any]:
    return {"scores": None if verdict.scores is None else list(verdict.scores), "reason": verdict.reason}


def _make_worker(section: JudgeSection, engine: EngineSpec, models: Models) -> Callable[[Sequence[Row]], list[Verdict]]:
    """In the actor: build the judge, with a language model of its own where it is one without an endpoint."""
    complete = None
    if (name := local_model(section)) is not None:
        from raydpo.generate.complete import local_completer  # torch, which the driver does without

        folder, gpus = str(models[name].here()), section.gpus_per_worker
        spec = replace(engine, model=folder, use_gpu=gpus > 0, gpu_share=gpus or 1.0, max_length=None)
        complete = local_completer(spec)
    return partial(judge_rows, build_judge(section, complete, models))


def texts(samples: Sequence[Sample]) -> list[str]:
    """What a judge reads."""
    return [sample.text for sample in samples]
