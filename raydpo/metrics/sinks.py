"""Where metrics go: `metrics.jsonl`, the one that survives everything, and TensorBoard events.

Decision: a resumed run first drops the lines beyond the step it goes on from, so that the file of an interrupted run
reads like that of an undisturbed one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def keep_lines(path: Path, last_step: int) -> None:
    """Cut a file of JSON lines with a `step` back to the steps up to `last_step`; half lines go too."""
    kept = [line for line in _lines(path) if line["step"] <= last_step] if last_step > 0 else []
    if kept or path.exists():
        staging = path.with_name(path.name + ".tmp")
        staging.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(staging, path)


class MetricsFile:
    """Append-only JSON lines: {"step": n, name: value, ...}."""

    def __init__(self, path: Path, resume_step: int) -> None:
        keep_lines(path, resume_step)
        self._file = path.open("a")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(errors="replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue  # the half line of a killed driver
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


class TensorBoard:
    """Scalars as TensorBoard events, written without TensorFlow or torch."""

    def __init__(self, folder: Path, resume_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

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
    """Both sinks of a run directory, as a context manager."""

    def __init__(self, run_dir: Path, resume_step: int = 0) -> None:
        self._sinks = (
            MetricsFile(run_dir / "metrics.jsonl", resume_step),
            TensorBoard(run_dir / "tensorboard", resume_step),
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for sink in self._sinks:
            sink.write(step, metrics)

    def __enter__(self) -> Sinks:
        return self

    def __exit__(self, *_: object) -> None:
        for sink in self._sinks:
            sink.close()
