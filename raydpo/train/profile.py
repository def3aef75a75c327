"""A few optimizer steps of rank 0 under torch's profiler: a trace for a viewer and a table of where the time went.

Comes in: a trainer and the events of its loop. Goes out: the same events, and one `Profiled` with the folder in staging.
Decision: the trainer's `update` is replaced while there is something to record, so the loop knows nothing of it and a
step that is not recorded runs what it always ran. Recording ends before an evaluation or a checkpoint, which would fill
the trace.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

from raydpo.artifacts import write_text
from raydpo.artifacts.durable import write_with
from raydpo.disk import full_disk
from raydpo.schema.rank_events import Profiled, TrainEvent
from raydpo.train.breakdown import shares, table
from raydpo.train.ranges import STEP
from raydpo.train.trace import read_pieces
from raydpo.train.trainer import Trainer

NUM_STEPS = 3
MOST_PLAIN_BYTES = 64 * 2**20
"""A trace larger than this is compressed; viewers read both."""


def steps_to_record(first: int, last: int, *every: int | None) -> range:
    """Steps to record of a training from step `first` to `last`: up to NUM_STEPS after the first one, which warms up.

    They end with the first at which something that comes `every` so many steps is due. A training of one step is
    recorded as it is, one of none is not.
    """
    start = min(first + 1, last) if first <= last else last + 1
    due = [-(-start // each) * each for each in every if each is not None]
    return range(start, min(start + NUM_STEPS - 1, last, *due) + 1)


def profiled(trainer: Trainer, events: Iterator[TrainEvent]) -> Generator[TrainEvent]:
    """`events` of the training of `trainer`, which has not begun, with the profile as soon as it is made."""
    spec, train = trainer.spec, trainer.spec.config.train
    stop = min(spec.stop_step or trainer.order.num_steps, trainer.order.num_steps)
    steps = steps_to_record(spec.resume_step + 1, stop, train.eval_every, train.save_every)
    recorder = _Recorder(trainer, steps)
    try:
        for event in events:
            if recorder.is_due:
                with full_disk(spec.staging / "profile"):
                    found = recorder.write(spec.staging / "profile")
                yield found
            yield event
    finally:
        recorder.close()


class _Recorder:
    """Stands in for `trainer.update` until the last of `steps`, which count from 1."""

    def __init__(self, trainer: Trainer, steps: range) -> None:
        self.trainer, self.steps, self.is_due = trainer, steps, False
        self._update = trainer.update
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if trainer.rank.use_gpu else [])]
        self._make = partial(profile, activities=activities, record_shapes=True)
        self._recording: profile | None = None
        if steps:
            trainer.update = self._recorded  # type: ignore[method-assign]

    def _recorded(self, step: int, is_logged: bool = True) -> tuple[bool, dict[str, float]]:
        if step + 1 not in self.steps:
            return self._update(step, is_logged)
        if self._recording is None:
            self._recording = self._make()
            self._recording.start()
        with record_function(STEP):
            result = self._update(step, is_logged)
        if step + 1 == self.steps[-1]:
            self._recording.stop()
            self.trainer.update = self._update  # type: ignore[method-assign]
            self.is_due = True
        return result

    def close(self) -> None:
        """Give the trainer its own `update` back, and stop a recording that an error or an early end cut short."""
        self.trainer.update = self._update  # type: ignore[method-assign]
        if self._recording is not None and not self.is_due:
            self._recording.stop()
        self._recording = None

    def write(self, folder: Path) -> Profiled:
        """Put trace and table into `folder`."""
        vocabulary = self.trainer.engine.engine.module.model.config.get_text_config().vocab_size
        pieces = read_pieces(write_trace(self._recording, folder))
        self._recording, self.is_due = None, False
        which = f"step {self.steps[0]}" if len(self.steps) == 1 else f"steps {self.steps[0]} to {self.steps[-1]}"
        rank = self.trainer.rank
        device = "its GPU" if rank.use_gpu else "its CPU"
        title = (
            f"Where the time of {which} went: rank 0 of {rank.num_ranks}, on {device}, while it was recorded.\n"
            "Recording slows a step, most where operators are small. Every moment is counted once."
        )
        write_text(folder / "table.txt", table(pieces, vocabulary, len(self.steps), title))
        shown = ", ".join(f"{name} {share:.0%}" for name, share in shares(pieces, vocabulary).items() if share >= 0.005)
        return Profiled(str(folder), f"profile of {which}: {shown}")


def write_trace(recording: Any, folder: Path, most_plain_bytes: int = MOST_PLAIN_BYTES) -> dict[str, Any]:
    """Write trace.json into `folder`, or trace.json.gz if it is larger than `most_plain_bytes`; returns what it says."""
    plain = folder / "trace.json"
    write_with(plain, lambda path: recording.export_chrome_trace(str(path)))
    trace: dict[str, Any] = json.loads(plain.read_bytes())
    if plain.stat().st_size > most_plain_bytes:
        write_with(folder / "trace.json.gz", lambda path: _compress(plain, path))
        plain.unlink()
    return trace


def _compress(source: Path, target: Path) -> None:
    with source.open("rb") as read, gzip.open(target, "wb", compresslevel=5) as written:
        shutil.copyfileobj(read, written)
