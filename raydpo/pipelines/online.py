"""The on-policy verb: sample, judge, train, repeat. The order of a run of rounds, and nothing else.

Comes in: a config and a judge. Goes out: a `Round` for each, as soon as it is committed. Decision: every arrow leads from
one committed piece to the next, so there is no state but the disk; with `placement: split` the pairs of the next round are
made in a second thread while this one trains. A round without pairs is committed as one that trained nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from raydpo.config import Config
from raydpo.errors import StateLostError
from raydpo.pipelines.offline import train
from raydpo.rounds.run import Judge, Produced, Round, RoundsRun, TrainingJob, open_run, read_summary
from raydpo.run_report.at_end import report_at_end
from raydpo.schema.events import Observer, ignore


def iterate(config: Config, judge: Judge | None = None, observer: Observer = ignore) -> Iterator[Round]:
    """Rounds of sample, judge, train; the same call goes on where an earlier one in `run.dir` ended.

    judge: (prompt, responses) -> a score each, higher is better, called in this process; without one the config's `judge`
    section. Rounds that were committed before are yielded again, without work. Writes `summary.json` at the end.
    Raises JudgeError, PolicyMismatchError, and what `raydpo.train` raises.
    """
    with open_run(config, judge, observer) as run:
        done: list[Round] = []
        run.evaluate_start()
        for index in range(run.num_rounds):
            found = run.committed(index) or _round(run, index, observer)
            if run.is_last(found):
                _train_again(run, run.kept.lost_at_end(index), observer)
                found = run.committed(index) or found  # its model is saved now
            done.append(found)
            yield found
            if run.is_stopped_by(found):
                break
        run.write_summary(done)
        report_at_end(run.dir, observer)


def _round(run: RoundsRun, index: int, observer: Observer) -> Round:
    _train_again(run, run.kept.lost(index), observer)
    produced = run.produced(index)  # sampled by the generators, judged, and made into pairs
    run.start_ahead(index + 1)  # with placement: split, while this round trains
    trained = _train(run, index, produced, observer) if produced.num_pairs else run.pass_on(index, produced)
    return run.finish_round(index, produced, trained)


def _train(run: RoundsRun, index: int, produced: Produced, observer: Observer) -> dict[str, float]:
    """Train on the pairs, and send the generators the new policy if they are free; metrics of the training."""
    try:
        return _train_once(run, index, produced, observer)
    except StateLostError:
        _train_again(run, run.kept.lost_state(index), observer)
        return _train_once(run, index, produced, observer)


def _train_once(run: RoundsRun, index: int, produced: Produced, observer: Observer) -> dict[str, float]:
    with run.training(index, produced) as job:
        summary = _run(job, observer)
    return run.trained(job, summary["train"])


def _train_again(run: RoundsRun, indices: list[int], observer: Observer) -> None:
    """Make policies again that are on no disk; the newest is saved, so that every attempt comes further."""
    for index in indices:
        is_saved = index + 1 not in indices
        try:
            _again_once(run, index, is_saved, observer)
        except StateLostError:
            _train_again(run, run.kept.lost_state(index), observer)
            _again_once(run, index, is_saved, observer)


def _again_once(run: RoundsRun, index: int, is_saved: bool, observer: Observer) -> None:
    with run.training_again(index, is_saved=is_saved) as job:
        _run(job, observer)


def _run(job: TrainingJob, observer: Observer) -> dict[str, Any]:
    return train(
        job.config,
        job.hearing(observer),
        receive=job.receive,
        is_wanted=job.is_wanted,
        optimizer=job.optimizer,
        scorers=job.scorers,
        trainers=job.trainers,
    )


def run_rounds(config: Config, observer: Observer = ignore) -> dict[str, Any]:
    """`iterate` to its end; the summary that `summary.json` holds."""
    for _ in iterate(config, observer=observer):
        pass
    return read_summary(config)
