"""Runs on one empty cache: each row is scored by one of them; what a dead one had is taken over."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raydpo.artifacts import CacheIdentity, ReferenceCache
from raydpo.config.render import dump
from raydpo.pipelines import precompute
from raydpo.reference.plan import plan_shards, wanted_rows
from raydpo.schema.events import Event, Note
from tests.pipelines import driver
from tests.pipelines.toy import NUM_ROWS, Toy, config, config_with_cache, nats_by_row

SMALL: dict[str, Any] = {"reference.rows_per_shard": 4, "reference.tokens_per_batch": 1}

HOLD = """
import contextlib, pathlib, sys
from raydpo.artifacts.claim import claimed
with contextlib.ExitStack() as stack:
    for name in sys.argv[2:]:
        assert stack.enter_context(claimed(pathlib.Path(sys.argv[1]), name))
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_four_runs_that_start_together_score_each_row_once(toy: Toy, tmp_path: Path) -> None:
    changes = {**SMALL, "reference.cache_dir": str(tmp_path / "cache")}
    runs = []
    for number in range(4):
        path = tmp_path / f"{number}.yaml"
        path.write_text(dump(config(toy, tmp_path / str(number), changes)))
        runs.append(driver.start("precompute", str(path), log=tmp_path / f"{number}.log"))
    for number, process in enumerate(runs):
        assert process.wait(driver.PATIENCE_S) == 0, (tmp_path / f"{number}.log").read_text()
    summaries = [
        json.loads((tmp_path / str(number) / "precompute.json").read_text())["reference"] for number in range(4)
    ]
    assert [summary["rows"] for summary in summaries] == [NUM_ROWS] * 4
    assert sum(summary["rows_scored"] for summary in summaries) == NUM_ROWS
    alone = config(toy, tmp_path / "alone", {**SMALL, "reference.cache_dir": str(tmp_path / "another")})
    precompute(alone)
    assert nats_by_row(tmp_path / "0") == nats_by_row(tmp_path / "alone")


def test_what_a_dead_run_claimed_is_taken_over(toy: Toy, tmp_path: Path, machine: None) -> None:
    first = config_with_cache("taken-over", toy, tmp_path / "first", SMALL)
    precompute(first)
    pointer = json.loads((tmp_path / "first/reference.json").read_text())
    identity = CacheIdentity(**json.loads((Path(pointer["cache"]) / "identity.json").read_text()))
    empty = ReferenceCache(tmp_path / "empty", identity)
    works = plan_shards(wanted_rows(tmp_path / "first/data", ("train", "eval"), 2), empty.open(), 4)
    names = [work.name for work in works[::3]]
    command = [sys.executable, "-c", HOLD, str(empty.claims), *names]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    seen: list[int] = []

    def observer(event: Event) -> None:
        if isinstance(event, Note) and "being scored by other runs" in event.text:
            seen.append(len(list((empty.folder / "shards").glob("*.json"))))
            holder.kill()
            holder.wait()

    second = config(toy, tmp_path / "second", {**SMALL, "reference.cache_dir": str(tmp_path / "empty")})
    summary = precompute(second, observer=observer)
    assert seen == [len(works) - len(names)], "it scored what was free, and waited for the rest"
    assert summary["reference"]["rows_scored"] == NUM_ROWS
    assert nats_by_row(tmp_path / "first") == nats_by_row(tmp_path / "second")


def test_what_another_run_scored_is_not_scored_again(toy: Toy, tmp_path: Path, machine: None) -> None:
    """It commits between the plan and the scoring: while this run waits."""
    first = config_with_cache("meanwhile", toy, tmp_path / "first", SMALL)
    precompute(first)
    pointer = Path(json.loads((tmp_path / "first/reference.json").read_text())["cache"])
    identity = CacheIdentity(**json.loads((pointer / "identity.json").read_text()))
    theirs, ours = ReferenceCache(pointer.parent, identity).open(), ReferenceCache(tmp_path / "empty", identity)
    works = plan_shards(wanted_rows(tmp_path / "first/data", ("train", "eval"), 2), ours.open(), 4)
    held = works[1:4]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(ours.claims), *(work.name for work in held)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"

    def observer(event: Event) -> None:
        if isinstance(event, Note) and "being scored by other runs" in event.text:
            for work in held:
                ours.write_shard(work.name, list(work.keys), theirs.lookup(list(work.keys)))
            holder.communicate()

    second = config(toy, tmp_path / "second", {**SMALL, "reference.cache_dir": str(tmp_path / "empty")})
    summary = precompute(second, observer=observer)
    assert summary["reference"]["rows_scored"] == NUM_ROWS - sum(len(work.keys) for work in held)
    assert nats_by_row(tmp_path / "first") == nats_by_row(tmp_path / "second")
