"""`python -m benchmarks.checkpoints --hh FILE`: what checkpoints by time cost a training on HH pairs.

Comes in: a file of HH-RLHF transcripts. Goes out: bytes, seconds in which the rank stood still, and CPU seconds of each
checkpoint, beside a run that makes one at its end alone; one JSON file, named by hardware and date. Decision: one rank in this
process, so that each part is measured where it runs; the driver's commit, which elsewhere runs beside the rank, counts as if
the rank stood still. CPU seconds are those of a thread: what else the machine does cannot move them.
"""

from __future__ import annotations

import argparse
import gzip
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.made import RESULTS, cpu_cores, save
from raydpo.config import Config
from raydpo.driver import train_events
from raydpo.pipelines import train
from raydpo.quickstart.bpe import train_bpe
from raydpo.quickstart.fresh_model import create_model
from raydpo.rundir.checkpoints import commit_checkpoint
from raydpo.train import loop
from raydpo.train.trainer import Trainer

EVERY_S = 300.0
"""Between two checkpoints, for the share that is stated."""


@dataclass
class Costs:
    """Seconds of each checkpoint, by part: (wall, CPU). copy: the rank stands still. wait: for the one before it. write: in a
    thread beside the steps. commit: by the driver."""

    parts: dict[str, list[tuple[float, float]]] = field(
        default_factory=lambda: {"copy": [], "wait": [], "write": [], "commit": []}
    )
    bytes: list[int] = field(default_factory=list)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        wall_s, cpu_s = time.perf_counter(), time.thread_time()
        yield
        self.parts[part].append((time.perf_counter() - wall_s, time.thread_time() - cpu_s))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Each part, where it is called."""
        stage, written = Trainer.stage, loop._written

        def copied(trainer: Trainer, *arguments: Any) -> Future[Any]:
            submit = trainer._writer.submit
            wrapped = patch.object(trainer._writer, "submit", lambda write: submit(self._wrapped("write", write)))
            with wrapped, self.timed("copy"):
                return stage(trainer, *arguments)

        def waited(staged: Future[Any] | None, spec: Any) -> Iterator[Any]:
            if staged is not None:
                with self.timed("wait"):
                    staged.exception()
            yield from written(staged, spec)

        def committed(*arguments: Any) -> Any:
            with self.timed("commit"):
                found = commit_checkpoint(*arguments)
            self.bytes.append(sum(path.stat().st_size for path in found.folder.rglob("*") if path.is_file()))
            return found

        with (
            patch.object(Trainer, "stage", copied),
            patch.object(loop, "_written", waited),
            patch.object(train_events, "commit_checkpoint", committed),
        ):
            yield

    def _wrapped(self, part: str, work: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            with self.timed(part):
                return work()

        return run


def measured(config: Config) -> dict[str, Any]:
    """One training: its seconds, and what its checkpoints took."""
    costs, wall_s, cpu_s = Costs(), time.perf_counter(), _cpu_s()
    with costs.watching():
        steps = train(config)["train"]["steps"]
    return {
        "steps": steps,
        "wall_s": time.perf_counter() - wall_s,
        "cpu_s": _cpu_s() - cpu_s,
        "checkpoints": len(costs.bytes),
        "bytes": costs.bytes,
        **{f"{part}_wall_s": [wall for wall, _ in seconds] for part, seconds in costs.parts.items()},
        **{f"{part}_cpu_s": [cpu for _, cpu in seconds] for part, seconds in costs.parts.items()},
    }


def stated(often: dict[str, Any]) -> dict[str, float]:
    """Of one checkpoint, on average; and the shares of a run with one every `EVERY_S`."""
    number = often["checkpoints"]
    still_s = sum(sum(often[f"{part}_wall_s"]) for part in ("copy", "wait", "commit")) / number
    cpu_s = sum(sum(often[f"{part}_cpu_s"]) for part in ("copy", "write", "commit")) / number
    return {
        "bytes": sum(often["bytes"]) / number,
        "stands_still_s": still_s,
        "cpu_s": cpu_s,
        "share_stands_still": still_s / EVERY_S,
        "share_if_all_cpu_stood_still": max(still_s, cpu_s) / EVERY_S,
    }


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _config(root: Path, name: str, epochs: int, minutes: float | None) -> Config:
    return Config.model_validate(
        {
            "run": {"dir": str(root / name), "runtime": "local"},
            "model": {"path": str(root / "model"), "dtype": "float32"},
            "data": {"train": [str(root / "hh.jsonl")], "max_length": 256, "overlong": "truncate_prompt"},
            "reference": {"cache_dir": str(root / "cache")},
            "train": {"epochs": epochs, "global_batch_pairs": 8, "save_every": None, "save_every_minutes": minutes},
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoints", description=__doc__.splitlines()[0])
    parser.add_argument("--hh", type=Path, required=True, help="a file of HH-RLHF transcripts (jsonl.gz)")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--every-s", type=float, default=1.5, help="seconds between checkpoints of the first run")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with gzip.open(arguments.hh, "rt", encoding="utf-8") as file:
            lines = [line for line, _ in zip(file, range(arguments.pairs), strict=False)]
        (root / "hh.jsonl").write_text("".join(lines))
        tokenizer = train_bpe([json.loads(line)["chosen"] for line in lines], 4096)
        weights = create_model(
            root / "model",
            tokenizer,
            hidden_size=128,
            num_layers=3,
            num_heads=4,
            intermediate_size=384,
            max_positions=512,
            seed=0,
        )
        train(_config(root, "warm", 1, None))  # scores the references and imports everything
        runs = {
            "by time": measured(_config(root, "often", arguments.epochs, arguments.every_s / 60)),
            "one at the end": measured(_config(root, "once", arguments.epochs, None)),
        }
    of_one = stated(runs["by time"])
    for name, run in runs.items():
        print(
            f"{name}: {run['steps']} steps, {run['checkpoints']} checkpoints, {run['wall_s']:.1f} s, CPU {run['cpu_s']:.1f} s"
        )
    print(", ".join(f"{name} {value:.4g}" for name, value in of_one.items()))
    result = {"weights": weights, "runs": runs, "of one": of_one}
    print(f"written: {save(RESULTS, 'checkpoints', cpu_cores(), vars(arguments), result)}")


if __name__ == "__main__":
    main()
