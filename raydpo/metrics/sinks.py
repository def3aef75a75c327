"""Where metrics go: `metrics.jsonl`, the one that survives everything, TensorBoard events, and sinks of others.

Decision: a resumed run first drops the lines beyond the step it goes on from, so that the file of an interrupted run
reads like that of an undisturbed one.
"""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from raydpo.config.doors import SINKS
from raydpo.config.outside import calling, is_outside
from raydpo.disk import append_line, full_disk
from raydpo.schema.json_text import parse_json


class Sink(Protocol):
    """The door `train.sinks`: made in the driver's process as `sink(run_dir, resume_step)`. resume_step: the step that the
    run goes on from, 0 at its start; what was written beyond it is of an attempt that died, and comes again.

    A class with `is_tracker = True` sends metrics elsewhere: what it raises is said once, it is asked no more, and the run
    goes on."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of a training step, or, named "eval/...", of an evaluation after it."""

    def close(self) -> None:
        """At the end of the run or of the attempt, whatever ended it."""


def keep_lines(path: Path, last_step: int) -> None:
    """Cut a file of JSON lines with a `step` back to the steps up to `last_step`; half lines go too."""
    kept = [line for line in metric_lines(path) if line["step"] <= last_step] if last_step > 0 else []
    if kept or path.exists():
        staging = path.with_name(path.name + ".tmp")
        text = "".join(_line(line) + "\n" for line in kept)
        try:
            with full_disk(path, len(text)):
                staging.write_text(text)
        except BaseException:
            staging.unlink(missing_ok=True)
            raise
        os.replace(staging, path)


class MetricsFile:
    """Append-only JSON lines: {"step": n, name: value, ...}; null for a value that is not finite."""

    def __init__(self, run_dir: Path, resume_step: int) -> None:
        self._path = run_dir / "metrics.jsonl"
        keep_lines(self._path, resume_step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        append_line(self._path, _line({"step": step, **metrics}))

    def close(self) -> None:
        """Every line is whole as soon as it is written."""


def _line(values: Mapping[str, Any]) -> str:
    """A line that any parser of JSON reads: a number that is not finite becomes null."""
    kept = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }
    return json.dumps(kept, allow_nan=False)


def metric_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, in order; none where there is no such file."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(errors="replace").splitlines():
        try:
            line = parse_json(text)
        except ValueError:
            continue  # the half line of a killed driver
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


class TensorBoard:
    """Scalars as TensorBoard events, written without TensorFlow or torch."""

    def __init__(self, run_dir: Path, resume_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder = run_dir / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventFileWriter(str(folder))
        if resume_step > 0:  # readers then hide what a killed attempt wrote beyond this step
            start = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=time.time(), step=resume_step + 1, session_log=start))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in metrics.items()]
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def close(self) -> None:
        self._writer.close()


class Sinks:
    """The sinks of a run directory, as a context manager. names: as in `train.sinks`. What an outside one raises is a
    ConfigError that names it; the others are closed all the same. Of a tracker, it is told to `warn`, once."""

    def __init__(
        self,
        run_dir: Path,
        resume_step: int = 0,
        names: Sequence[str] = ("jsonl", "tensorboard"),
        warn: Callable[[str], None] = warnings.warn,
    ) -> None:
        self._sinks: list[tuple[str, Sink]] = []
        self._dir, self._warn = run_dir, warn
        self._trackers: set[str] = set()
        self._failed: set[str] = set()
        with ExitStack() as half:
            for name in names:
                make = SINKS.resolve(name)
                if getattr(make, "is_tracker", False):
                    self._trackers.add(name)
                with self._around(name):
                    sink: Sink = make(run_dir, resume_step)
                    self._sinks.append((name, sink))
                    half.callback(self._close, name, sink)
            self._open = half.pop_all()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, sink in self._sinks:
            if name not in self._failed:
                with self._around(name):
                    sink.write(step, metrics)

    def __enter__(self) -> Sinks:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _close(self, name: str, sink: Sink) -> None:
        with self._around(name):
            sink.close()

    @contextmanager
    def _around(self, name: str) -> Iterator[None]:
        """A call of a sink."""
        try:
            with calling(SINKS.key, name), full_disk(self._dir / _file_of(name)):
                yield
        except Exception as error:
            if name not in self._trackers:
                raise
            if name not in self._failed:
                self._failed.add(name)
                self._warn(f"{error} The run goes on without this tracker; metrics.jsonl has every metric.")


def _file_of(name: str) -> str:
    """What a sink of ours writes in the run directory; of others nothing is known."""
    return "" if is_outside(name) else name
