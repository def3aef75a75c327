"""`evaluation.arrow` of a run directory: log-probs by token of held-out answers, of the newest evaluation.

Comes in: rows of each rank, in files of its own. Goes out: one file, by example and answer. Decision: ranks write into the
staging folder and the driver puts their files together, as with all that counts in a run directory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from raydpo.artifacts.arrow import write_shard
from raydpo.artifacts.lease import fence, settle
from raydpo.disk import full_disk

KEPT_PAIRS = "evaluation.arrow"
SCHEMA = pa.schema(
    [
        ("example", pa.int64()),
        ("answer", pa.int8()),
        ("policy_nats", pa.list_(pa.float32())),
        ("reference_nats", pa.list_(pa.float32())),
    ]
)
"""A row for each answer: place of its example in the split, place among the example's answers, log-probs of its tokens in the
loss; without a reference the last is empty. The schema's metadata has the `step`."""
_FOLDER = "held_out"


def write_part(staging: Path, step: int, rank: int, columns: Mapping[str, Sequence[Any]]) -> None:
    """What a rank has of the evaluation after `step`, in a file of its own."""
    folder = staging / _FOLDER
    path = folder / f"{step:06d}-{rank}.arrow"
    with full_disk(path):
        folder.mkdir(parents=True, exist_ok=True)
        with pa.ipc.new_file(str(path), SCHEMA) as writer:
            writer.write_table(pa.table(dict(columns), schema=SCHEMA))


def put_together(staging: Path, step: int, run_dir: Path) -> None:
    """Make what ranks wrote of the evaluation after `step` the run's `evaluation.arrow`; nothing where nobody wrote."""
    files = sorted((staging / _FOLDER).glob(f"{step:06d}-*.arrow"))
    if not files:
        return
    tables = []
    for file in files:
        with pa.OSFile(str(file)) as opened:
            tables.append(pa.ipc.open_file(opened).read_all())
    table = pa.concat_tables(tables).sort_by([("example", "ascending"), ("answer", "ascending")])
    path = run_dir / KEPT_PAIRS
    fence(path)
    with full_disk(path):
        write_shard(path, table.replace_schema_metadata({"step": str(step)}))
    settle(path, is_urgent=False)
    for file in files:
        file.unlink()


def read_kept(run_dir: Path) -> tuple[int, pa.Table] | None:
    """(step, rows) of `evaluation.arrow`; None where there is none that can be read."""
    try:
        with pa.OSFile(str(run_dir / KEPT_PAIRS)) as opened:
            table = pa.ipc.open_file(opened).read_all()
        return int((table.schema.metadata or {}).get(b"step", b"0")), table.select(SCHEMA.names)
    except (OSError, KeyError, ValueError):
        return None
