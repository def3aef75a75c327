"""A piece of work with every kind of request to an object store, that goes on where an earlier attempt stopped.

`python -m tests.storage.crash_work FOLDER URL POINT...` starts one process a crash point, each with an address and a machine of
its own, and prints exit codes as JSON; without points it prints how often the whole work reaches each.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np

from raydpo.artifacts import (
    Lease,
    ReferenceCache,
    commit_folder,
    compact_cache,
    durable,
    fence,
    local_path,
    newest_valid,
    settle,
    write_json,
)
from raydpo.artifacts.cache_shards import live_names
from raydpo.artifacts.folders import discard
from raydpo.artifacts.mirror_path import ROOT_VARIABLE
from raydpo.artifacts.remote_garbage import collect_stored
from tests.artifacts.golden import IDENTITY

KEYS = [f"{number:032x}" for number in range(3)]
SHARDS = {"shard": KEYS[:2], "second": KEYS[2:]}
FILES = {step: {"model/weights": b"w" * 300_000 * step, "state": b"s" * step} for step in (1, 2)}
SUMMARY = {"steps": 2}


def work(url: str) -> None:
    """What of the work is not there yet, of a run at `url`/run with a cache at `url`/cache."""
    cache = ReferenceCache(local_path(f"{url}/cache"), IDENTITY).open()
    for name, keys in SHARDS.items():
        if missing := cache.missing(keys):
            cache.write_shard(name, missing, [np.full(2, -1, np.float32)] * len(missing))
    cache.close()
    if len(live_names(cache.folder)) > 1:
        compact_cache(cache.folder)
    collect_stored(f"{url}/cache", grace_s=-60)
    folder = local_path(f"{url}/run")
    with Lease(folder):
        newest, _ = newest_valid(folder / "checkpoints", "step-")
        done = 0 if newest is None else int(newest.name[-1])
        for step in range(done + 1, 3):
            _checkpoint(folder, step)
            if step > 1:
                discard(folder / f"checkpoints/step-{step - 1:06d}")
        if not (folder / "model").is_dir():
            fence(folder / "model")
            shutil.copytree(folder / "checkpoints/step-000002/model", folder / "model")
            settle(folder / "model")
        fence(folder / "summary.json")
        write_json(folder / "summary.json", SUMMARY)
        settle(folder / "summary.json")


def _checkpoint(folder: Path, step: int) -> None:
    staging = folder / "checkpoints" / f".staging-{step}"
    shutil.rmtree(staging, ignore_errors=True)
    for name, data in FILES[step].items():
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).write_bytes(data)
    commit_folder(staging, folder / f"checkpoints/step-{step:06d}", {"step": step}, replace=True)


def place_of(point: str) -> str:
    """Name of the machine and last part of the address of the process that is killed at `point`."""
    return point.replace(":", "-")


def attempt(folder: Path, url: str, point: str) -> int:
    """Exit code of a process of its own that does the work and is killed at `point`."""
    child = os.fork()
    if not child:
        os.environ[durable.CRASH_VARIABLE] = point
        os.environ[ROOT_VARIABLE] = str(folder / place_of(point))
        work(f"{url}/{place_of(point)}")
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: Path, url: str, points: list[str]) -> None:
    if points:
        print(json.dumps({point: attempt(folder, url, point) for point in points}))
        return
    os.environ[durable.CRASH_VARIABLE] = "object:before-put:1000000"
    os.environ[ROOT_VARIABLE] = str(folder / "whole")
    work(f"{url}/whole")
    print(json.dumps(durable._reached))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
