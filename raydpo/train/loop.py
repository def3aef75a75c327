"""The training loop of one rank: a generator of events, a plain function of (rank, spec).

Comes in: a `TrainSpec` (paths and config). Goes out: events, and staged checkpoints that the driver commits.
Decision: the loop holds no state but the step number; order and learning rate are functions of it, everything else is
in the checkpoint. It knows no Ray: a test iterates over it. Asked to stop in the middle (`stop_step`), it stages a
checkpoint there and ends without `Finished`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from concurrent.futures import Future

from raydpo.artifacts.elsewhere import bring
from raydpo.disk import full_disk
from raydpo.errors import NonFiniteError
from raydpo.metrics import Patience
from raydpo.models.varlen import unserved
from raydpo.schema.rank_events import Alive, Evaluated, Finished, Noted, Skipped, Staged, Staging, Stepped, TrainEvent
from raydpo.train.boundary import GO_ON, STOP, Boundary
from raydpo.train.probe import probe
from raydpo.train.profile import profiled
from raydpo.train.push import push
from raydpo.train.run_feeds import Rank
from raydpo.train.spec import TrainSpec
from raydpo.train.trainer import Trainer, build_trainer

MARGINS = "eval/rewards/margins"


def run(rank: Rank, spec: TrainSpec) -> Iterator[TrainEvent]:
    """Train. Rank 0 yields what happens; the others yield `Alive` in its place, and `Staged` for their own part."""
    trainer = build_trainer(rank, spec)
    try:
        events = _with_news(_train(trainer))
        for event in profiled(trainer, events) if spec.profile and rank.rank == 0 else events:
            yield event if rank.rank == 0 or isinstance(event, Staged) else Alive(getattr(event, "step", 0))
    finally:
        trainer.close()


def _with_news(events: Iterator[TrainEvent]) -> Iterator[TrainEvent]:
    """Also what attention has to say, which is known after the first forward."""
    num_said = 0
    for event in events:
        yield event
        for text in unserved()[num_said:]:
            yield Noted(text)
            num_said += 1


def _train(trainer: Trainer) -> Iterator[TrainEvent]:
    spec, train, num_steps = trainer.spec, trainer.spec.config.train, trainer.order.num_steps
    patience = Patience(train.early_stopping_patience, list(spec.eval_history))
    yield trainer.ready
    yield from map(Noted, trainer.notes)
    if trainer.engine.updated_by is not None:
        yield trainer.engine.updated_by
    if (state := spec.resume or spec.optimizer) is not None and not trainer.has_state:
        bring(state)
        trainer.engine.load(state / "engine")
    if spec.resume is None:
        yield from _before_first_step(trainer, patience)
    meter, guard = _Meter(), _NonFinite(train.max_nonfinite_steps, spec.skipped_steps, spec.skipped_in_a_row)
    stop, reason = min(spec.stop_step or num_steps, num_steps), ""
    boundary = Boundary(trainer.rank, trainer.engine.device, spec.staging, train.save_every_minutes)
    staged: Future[Staged] | None = None
    for step in range(spec.resume_step + 1, stop + 1):
        is_logged = step % train.log_every == 0 or step == num_steps
        if staged is not None and staged.done():
            yield from _written(staged, spec)
            staged = None
        try:
            applied, metrics = trainer.update(step - 1, is_logged)
            skipped = guard.observe(trainer, step, applied, metrics)
            if skipped:
                yield skipped
                guard.stop_if_too_many(step)
        except Exception:
            yield from _written(staged, spec)  # a step that fails does not take the checkpoint before it along
            raise
        meter.add(trainer.num_tokens(step - 1))
        if is_logged and not skipped:
            yield Stepped(step, {**metrics, **meter.read(), "skipped_steps": float(guard.total)})
        elif not skipped:
            yield Alive(step)
        reason = "all steps done" if step == num_steps else ""
        evaluation: dict[str, float] = {}
        if trainer.eval is not None and (reason or _due(step, train.eval_every)):
            for event in trainer.evaluate(step):
                evaluation = dict(event.metrics) if isinstance(event, Evaluated) else evaluation
                yield event
            if patience.exhausted(evaluation.get(MARGINS, 0.0)) and not reason:
                reason = f"{MARGINS} did not rise in {patience.patience} evaluations"
        order = boundary.order()
        is_due = order != GO_ON or _due(step, train.save_every) or (evaluation and train.export == "best")
        if reason or step == stop or is_due:
            yield from _written(staged, spec)  # one at a time
            yield Staging(step)
            with full_disk(spec.staging, spec.checkpoint_bytes):
                staged = trainer.stage(step, evaluation, reason)
            boundary.restart()
        if reason or order == STOP:
            break
        if evaluation or is_due:
            meter.restart()
    yield from _written(staged, spec)
    was_over = spec.resume_step >= num_steps
    if reason or was_over:
        yield Finished(spec.resume_step if was_over else step, reason or "all steps were done before")
    if spec.push and (reason or was_over):
        yield from push(trainer)


def _before_first_step(trainer: Trainer, patience: Patience) -> Iterator[TrainEvent]:
    if trainer.spec.first is not None:
        yield from trainer.spec.first(trainer)
    if trainer.spec.probe:
        yield probe(trainer.engine, trainer.train, trainer.spec.dtype)
    if trainer.eval is not None:
        for event in trainer.evaluate(0):
            if isinstance(event, Evaluated):
                patience.exhausted(event.metrics.get(MARGINS, 0.0))
            yield event


def _written(staged: Future[Staged] | None, spec: TrainSpec) -> Iterator[Staged]:
    """This rank's part of a checkpoint that was written while the steps after it ran."""
    if staged is not None:
        with full_disk(spec.staging, spec.checkpoint_bytes):
            event = staged.result()
        yield event


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


class _NonFinite:
    """Counts the steps that the engine refused."""

    def __init__(self, most_in_a_row: int, total: int, in_a_row: int) -> None:
        self.most_in_a_row, self.in_a_row, self.total, self._last = most_in_a_row, in_a_row, total, ""

    def observe(self, trainer: Trainer, step: int, applied: bool, metrics: dict[str, float]) -> Skipped | None:
        if applied:
            self.in_a_row = 0
            return None
        self.in_a_row += 1
        self.total += 1
        sources = tuple(trainer.train.table.source(int(e)) for e in trainer.order.examples(step - 1))
        self._last = (
            f"loss {metrics.get('loss', math.nan)}, gradient norm {metrics['grad_norm']}; rows {sources[0]} ..."
        )
        return Skipped(step, metrics.get("loss", math.nan), metrics["grad_norm"], sources)

    def stop_if_too_many(self, step: int) -> None:
        if self.in_a_row >= self.most_in_a_row:
            raise NonFiniteError(
                f"{self.in_a_row} steps in a row up to step {step} had a loss or gradient that is not finite (last: "
                f"{self._last}). They were skipped, no weight was changed by them. Lower train.learning_rate, look at the "
                "rows in bad_batches.jsonl, or train in float32; the same command goes on from the last checkpoint."
            )


class _Meter:
    """Real tokens a second of training since the last reading."""

    def __init__(self) -> None:
        self._tokens, self._since = 0, time.monotonic()

    def add(self, tokens: int) -> None:
        self._tokens += tokens

    def restart(self) -> None:
        """Forget the time since the last reading: it went into an evaluation or a checkpoint."""
        self._tokens, self._since = 0, time.monotonic()

    def read(self) -> dict[str, float]:
        now = time.monotonic()
        rate = self._tokens / max(now - self._since, 1e-9)
        self._tokens, self._since = 0, now
        return {"tokens_per_s": rate}
