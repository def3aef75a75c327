"""A disk that fills at any stage of a run: one sentence with numbers, nothing half left, and the same command goes on.

The disk is a real one, a file system in memory of a few megabytes; it is filled from the observer, at the moment that is the
subject. Only root can mount one.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from raydpo import cli
from raydpo.artifacts import verify_folder
from raydpo.config.render import dump
from raydpo.disk import free_bytes
from raydpo.errors import StorageError
from raydpo.pipelines import precompute, train
from raydpo.schema.events import Advanced, Event, StageDone, StageStarted
from tests.pipelines.conftest import Finished
from tests.pipelines.toy import Toy, config, metrics, nats_by_row, weights

HALF = re.compile(r"^\.(staging|removed|model|tmp|room)|\.tmp$")
SMALL = 24 * 2**20
"""Bytes of the disk."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """The folder of a small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


class Filling:
    """An observer that fills `disk` up to `left` bytes at the first event that `moment` wants."""

    def __init__(self, disk: Path, moment: Callable[[Event], bool], left: int = 0) -> None:
        self.ballast, self.moment, self.left = disk / "ballast", moment, left

    def __call__(self, event: Event) -> None:
        if self.moment(event) and not self.ballast.exists():
            self.ballast.write_bytes(bytes(free_bytes(self.ballast.parent) - self.left))


class FillingSink:
    """Fills the disk of a run directory, up to 64 KiB, as its own sink of metrics: when a step is committed."""

    def __init__(self, run_dir: Path, resume_step: int) -> None:
        self.checkpoints = run_dir / "checkpoints"
        self.filling = Filling(run_dir.parent, lambda _: True, 2**16)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for _ in range(
            500 * (step > 1)
        ):  # a rank says between steps what it has written, so no step may wait for all of it
            if any(self.checkpoints.glob("step-*")):
                self.filling(StageStarted("ballast", None, "bytes"))
                return
            time.sleep(0.01)

    def close(self) -> None:
        """Nothing is open."""


def started(stage: str) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, StageStarted) and event.stage == stage


def after_step(step: int) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, Advanced) and event.stage == "train" and event.done >= step


def ended(event: Event) -> bool:
    return isinstance(event, StageDone) and event.stage == "train"


def check_full(disk: Path, failure: pytest.ExceptionInfo[StorageError], path: str) -> None:
    """One sentence that names path, need and room; exit code 2; nothing half written anywhere."""
    assert failure.value.exit_code == 2
    (said,) = failure.value.problems
    assert re.search(rf"{path}\S* could not be written: the disk is full \(.+ needed, [\d,]+ bytes free\)", said), said
    assert not [found for found in disk.rglob("*") if HALF.search(found.name)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "left", "path"),
    [
        (started("data"), 4096, "data/|quarantine"),
        (after_step(2), 2**17, r"checkpoints/\.staging-"),
        (after_step(2), 0, r"checkpoints/\.staging-|metrics|tensorboard"),
        (ended, 4096, "/model"),
    ],
    ids=["data", "checkpoint", "nothing left", "model"],
)
def test_training_goes_on_when_there_is_room_again(
    disk: Path,
    toy: Toy,
    finished: Finished,
    machine: None,
    moment: Callable[[Event], bool],
    left: int,
    path: str,
) -> None:
    wanted = config(toy, disk / "run", {"train.keep_checkpoints": 3})
    filling = Filling(disk, moment, left)
    with pytest.raises(StorageError) as failure:
        train(wanted, filling)
    check_full(disk, failure, path)
    checkpoints = list((disk / "run/checkpoints").glob("step-*"))
    assert [verify_folder(folder) for folder in checkpoints] == [[] for _ in checkpoints]
    filling.ballast.unlink()
    summary = train(wanted)
    assert weights(disk / "run/model") == weights(finished.dir / "model")
    assert metrics(disk / "run") == metrics(finished.dir)
    assert summary["train"]["resumed_from_step"] == max((int(folder.name[-6:]) for folder in checkpoints), default=0)


@pytest.mark.parametrize("sink", ["jsonl", "tensorboard"])
def test_metrics_are_whole_lines_up_to_a_full_disk(disk: Path, toy: Toy, scored: Any, machine: None, sink: str) -> None:
    wanted = config(
        toy,
        disk / "run",
        {
            "train.save_every": None,
            "train.eval_every": None,
            "train.global_batch_pairs": 2,
            "train.sinks": ["jsonl"] if sink == "jsonl" else ["jsonl", "tensorboard"],
        },
    )
    filling = Filling(disk, after_step(1), 0 if sink == "jsonl" else 2**16)
    with pytest.raises(StorageError) as failure:
        train(wanted, filling)
    check_full(disk, failure, r"run/\w+")
    text = (disk / "run/metrics.jsonl").read_text()
    assert text.endswith("}\n")
    assert len(metrics(disk / "run")) == text.count("\n")


def test_scoring_goes_on_when_there_is_room_again(disk: Path, toy: Toy, scored: Any, machine: None) -> None:
    wanted = config(toy, toy.root / "scored-on-a-small-disk", {"reference.cache_dir": str(disk / "cache")})
    filling = Filling(disk, started("reference"), 2**15)
    with pytest.raises(StorageError) as failure:
        precompute(wanted, filling)
    check_full(disk, failure, "cache/")
    recorded = {path.stem for path in disk.glob("cache/*/shards/*.json")}
    shards = {path.name.rpartition("-")[0] for path in disk.glob("cache/*/shards/*.arrow")}
    assert shards == recorded
    filling.ballast.unlink()
    summary = precompute(wanted)
    assert summary["reference"]["rows"] - summary["reference"]["rows_scored"] == 16 * len(recorded)
    assert nats_by_row(disk / "cache") == nats_by_row(toy.cache)


@pytest.mark.slow
def test_ranks_of_their_own_say_it_in_one_sentence(
    disk: Path, toy: Toy, scored: Any, machine: None, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"train.num_workers": 2, "train.epochs": 2, "train.keep_checkpoints": 8}  # no room comes back
    changes["train.sinks"] = ["jsonl", f"{__name__}:FillingSink"]
    file = toy.root / "two-ranks.yaml"
    file.write_text(dump(config(toy, disk / "run", changes)))
    assert cli.main(["train", str(file)]) == 2
    text = capsys.readouterr().err
    (said,) = [line for line in text.splitlines() if line.startswith("raydpo train:")]
    # Whichever of ranks and driver meets it first says it.
    assert re.search(r"/disk/run\S* could not be written: the disk is full \(", said)
    assert "Traceback" not in text
    assert not [found for found in disk.rglob("*") if HALF.search(found.name)]
    checkpoints = list((disk / "run/checkpoints").glob("step-*"))
    assert checkpoints
    assert [verify_folder(folder) for folder in checkpoints] == [[] for _ in checkpoints]
