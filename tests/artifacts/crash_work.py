"""A piece of work with every kind of durable write, that goes on where an earlier attempt stopped.

`python -m tests.artifacts.crash_work FOLDER POINT...` starts one process a crash point, each in a folder of its own, and
prints exit codes as JSON; without points it prints how often the whole work reaches each.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa

from raydpo.artifacts import (
    ExampleTable,
    ExampleWriter,
    Lease,
    ReferenceCache,
    collect_garbage,
    commit_folder,
    compact_cache,
    durable,
    fence,
    newest_valid,
    write_json,
)
from raydpo.artifacts.cache_shards import live_names
from raydpo.errors import IntegrityError
from tests.artifacts.golden import EXAMPLES, IDENTITY, SHARDS, rows_of

OLD, NEW = {"version": "old"}, {"version": "new" * 999}
CHECKPOINT = {"rank-0/weights": b"w" * 5000, "state": b"s"}


def work(folder: Path) -> None:
    """What of the work is not there yet."""
    with Lease(folder):
        _work(folder)


def _work(folder: Path) -> None:
    cache = ReferenceCache(folder / "caches", IDENTITY).open()
    for shard in SHARDS:
        rows = rows_of(shard)
        if cache.missing([*rows]):
            cache.write_shard(shard, [*rows], [*rows.values()])
    cache.close()
    if len(live_names(cache.folder)) > 1:
        compact_cache(cache.folder)
    collect_garbage(folder / "caches", grace_s=0)
    if newest_valid(folder / "checkpoints", "step-")[0] is None:
        staging = folder / "checkpoints" / f".staging-{uuid.uuid4().hex}"
        for name, data in CHECKPOINT.items():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            (staging / name).write_bytes(data)
        commit_folder(staging, folder / "checkpoints" / "step-000001", {"step": 1})
    try:
        ExampleTable.open(folder / "data", "train")
    except IntegrityError:
        writer = ExampleWriter(folder / "data", "train", examples_per_shard=3)
        for example in EXAMPLES:
            writer.add(*example)
        writer.close()
    fence(folder / "summary.json")
    write_json(folder / "summary.json", NEW)


def prepare(folder: Path) -> None:
    """What lies there before the work begins: a file that it replaces."""
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(OLD))


def attempt(folder: Path, point: str) -> int:
    """Exit code of a process of its own that does the work and is killed at `point`."""
    child = os.fork()
    if not child:
        os.environ[durable.CRASH_VARIABLE] = point
        prepare(folder)
        work(folder)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: Path, points: list[str]) -> None:
    if points:
        pa.array(np.zeros(1))  # imports what pyarrow imports late, once instead of in every child
        print(json.dumps({point: attempt(folder / point.replace(":", "_"), point) for point in points}))
        return
    os.environ[durable.CRASH_VARIABLE] = "file:before-write:1000000"
    prepare(folder / "whole")
    work(folder / "whole")
    print(json.dumps(durable._reached))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
