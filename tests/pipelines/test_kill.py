"""SIGKILL of the driver while it scores and while it trains: the same command ends with the same bytes.

One story for all tests, because its parts are expensive: a first command is killed when its first shards are committed,
a second one at its first checkpoint, a third one is left alone. Two ranks, float32; on Ray, and on processes of this
machine. Beside both one undisturbed run on processes of this machine: its numbers are those of one on Ray
(`test_on_ray.py`).
"""

from __future__ import annotations

import contextlib
import io
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raydpo import cli
from raydpo.artifacts import verify_folder
from raydpo.config import Config
from raydpo.config.render import dump
from raydpo.pipelines import train
from raydpo.runtime import session
from tests.pipelines import driver
from tests.pipelines.toy import NUM_ROWS, Toy, committed_shards, config, everything_in, metrics, nats_by_row, weights

pytestmark = pytest.mark.slow

ROWS_PER_SHARD = 1
NUM_STEPS = 16


@dataclass(frozen=True)
class Story:
    """What was seen on the way. kept: shards that the first command had committed, with time and size of each."""

    dir: Path
    cache: Path
    kept: dict[str, tuple[int, int]]
    second_driver: tuple[int, str, int]
    checkpoints_at_kill: list[str]
    left_alive: tuple[set[driver.Process], set[driver.Process]]
    log_of_second: str
    summary: dict[str, Any]


def settings(toy: Toy, name: str, kind: str) -> Config:
    changes = {
        "run.runtime": kind,
        "reference.cache_dir": str(toy.root / f"{name}-cache-{kind}"),
        "reference.num_workers": 1,
        "reference.rows_per_shard": ROWS_PER_SHARD,
        "reference.tokens_per_batch": 1,  # a forward a row, so that scoring takes a while
        "train.num_workers": 2,
        "train.global_batch_pairs": 8,
        "train.epochs": 2,
        "train.save_every": 1,
        "train.eval_every": 3,
        "train.verify_export": kind == "local",  # a process more, and on Ray all of its imports
    }
    return config(toy, toy.root / f"{name}-{kind}", changes)


@pytest.fixture(scope="module", params=[pytest.param("ray", marks=pytest.mark.ray), "local"])
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of the runtime."""
    with session(kind=request.param, local_cpus=4):
        yield request.param


@pytest.fixture(scope="module")
def undisturbed(toy: Toy) -> dict[str, Any]:
    return train(settings(toy, "undisturbed", "local"))


@pytest.fixture(scope="module")
def story(toy: Toy, kind: str) -> Story:
    run, cache = toy.root / f"killed-{kind}", toy.root / f"killed-cache-{kind}"
    wanted = settings(toy, "killed", kind)
    file = toy.root / f"killed-{kind}.yaml"
    file.write_text(dump(wanted))

    first = driver.start("train", str(file), log=toy.root / f"first-{kind}.log")
    driver.wait_until(lambda: bool(committed_shards(cache)), first, toy.root / f"first-{kind}.log")
    first.send_signal(signal.SIGSTOP)  # it holds the run directory, and hands out no more work
    second_driver = _try(file)
    under_first = driver.end(first)
    kept = {path: seen for path, seen in everything_in(cache).items() if path.endswith(".json") and "/shards/" in path}

    second = driver.start("train", str(file), log=toy.root / f"second-{kind}.log")
    driver.wait_until((run / "checkpoints/step-000001").is_dir, second, toy.root / f"second-{kind}.log")
    under_second = driver.end(second)
    checkpoints = sorted(path.name for path in (run / "checkpoints").glob("step-*"))

    return Story(
        run,
        cache,
        kept,
        (*second_driver, first.pid),
        checkpoints,
        (under_first, under_second),
        (toy.root / f"second-{kind}.log").read_text(),
        train(wanted),
    )


def undisturbed_dir(story: Story) -> Path:
    return story.dir.with_name("undisturbed-local")


def _try(file: Path) -> tuple[int, str]:
    """Exit code and words of a second driver, in this process."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = cli.main(["train", str(file)])
    return code, said.getvalue()


def test_a_second_driver_is_refused_and_told_who_is_there(story: Story) -> None:
    code, said, pid = story.second_driver
    assert code == 2
    assert f"process {pid} " in said
    assert str(story.dir) in said
    assert "Traceback" not in said


def test_what_was_committed_before_the_kill_is_not_scored_again(story: Story) -> None:
    num_shards = NUM_ROWS // ROWS_PER_SHARD
    assert 0 < len(story.kept) < num_shards, "the kill was not in the middle"
    now = everything_in(story.cache)
    assert {path: now[path] for path in story.kept} == story.kept
    assert len(committed_shards(story.cache)) == num_shards
    rows_kept = len(story.kept) * ROWS_PER_SHARD
    assert f"{NUM_ROWS - rows_kept} of {NUM_ROWS} rows scored, {rows_kept} were in the cache" in story.log_of_second


def test_the_cache_is_that_of_an_undisturbed_run(story: Story, toy: Toy, undisturbed: dict[str, Any]) -> None:
    whole = story.cache.with_name("undisturbed-cache-local")
    assert nats_by_row(story.cache) == nats_by_row(whole)
    names = [{path.name for path in committed_shards(cache)} for cache in (story.cache, whole)]
    assert names[0] == names[1]


def test_training_went_on_from_a_checkpoint(story: Story) -> None:
    assert story.checkpoints_at_kill, "no checkpoint at the moment of the kill"
    resumed_from = story.summary["train"]["resumed_from_step"]
    assert 1 <= resumed_from < NUM_STEPS
    assert f"step-{resumed_from:06d}" in story.checkpoints_at_kill
    assert story.summary["reference"]["forwards"] == 0


def test_the_model_is_that_of_an_undisturbed_run(story: Story, toy: Toy, undisturbed: dict[str, Any]) -> None:
    assert weights(story.dir / "model") == weights(undisturbed_dir(story) / "model")
    assert weights(story.dir / "model") != weights(toy.model)


def test_the_numbers_are_those_of_an_undisturbed_run(story: Story, toy: Toy, undisturbed: dict[str, Any]) -> None:
    lines = metrics(story.dir)
    assert lines == metrics(undisturbed_dir(story))
    assert {line["step"] for line in lines} == set(range(NUM_STEPS + 1))
    assert story.summary["train"]["steps"] == undisturbed["train"]["steps"] == NUM_STEPS
    assert story.summary["eval"] == undisturbed["eval"]
    assert story.summary["data"] | {"reused": False} == undisturbed["data"]


def test_no_process_of_a_killed_run_is_left(story: Story, kind: str) -> None:
    """Without Ray the first command scores in its own process, the second one has two ranks with their guards, and
    their fork server."""
    for processes, at_least in zip(story.left_alive, (4, 4) if kind == "ray" else (0, 5), strict=True):
        assert len(processes) >= at_least
        assert not driver.alive(processes)


def test_nothing_half_done_is_left_in_the_run_directory(story: Story) -> None:
    checkpoints = sorted((story.dir / "checkpoints").iterdir())
    assert [path.name for path in checkpoints][-2:] == ["step-000015", "step-000016"]
    assert len(checkpoints) <= 3, "the newest two, and the best"
    assert [verify_folder(path) for path in checkpoints] == [[] for _ in checkpoints]
    assert not [
        path for path in story.dir.rglob("*") if path.name.startswith((".staging", ".removed", ".model", ".tmp"))
    ]
