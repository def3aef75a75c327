"""What a rank reads of a reference cache with very many small shards: CPU seconds, bytes and files.

    python -m benchmarks.cache_shards --shards 100000 --rows 8 --out benchmarks/results

Comes in: how many shards. Goes out: JSON: the planting, the opening by one rank's `CacheReader` with the reading of its own
rows, the same after compaction and collection. Decision: shards are planted as committed ones are, but without an fsync each,
which would take the time of the disk and say nothing of readers; the index is written as the driver writes it. Bytes are those
of the system calls (`rchar`) and of the shards that were mapped; of the index, which is mapped too, the size is given.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.made import RESULTS, cpu_cores, save
from raydpo.artifacts import CacheIdentity, ReferenceCache, collect_garbage, compact_cache, durable
from raydpo.artifacts.cache_index import INDEX_FOLDER, newest_name
from raydpo.artifacts.cache_reader import CacheReader

IDENTITY = CacheIdentity("planted", "none", "planted", "float32", "none", "1")
TOKENS = 20
"""Of each answer."""
Facts = dict[str, float]


def key_of(row: int) -> str:
    """Of row 0, 1, ..., as strewn as digests are."""
    return hashlib.sha256(row.to_bytes(8)).hexdigest()[:32]


def plant(folder: Path, num_shards: int, rows: int) -> ReferenceCache:
    """A cache of `num_shards` shards of `rows` rows each, with its index."""
    cache = ReferenceCache(folder, IDENTITY)
    values = -np.arange(rows * TOKENS, dtype=np.float32).reshape(rows, TOKENS)
    with patch.object(durable, "fsync"):
        for shard in range(num_shards):
            keys = [key_of(shard * rows + row) for row in range(rows)]
            cache.write_shard(f"{shard:024x}", keys, list(values - shard))
        cache.open().write_index(is_due=True)
    cache.close()
    return cache


def read(cache: ReferenceCache, num_rows: int, num_read: int) -> Facts:
    """What one rank needs that reads `num_read` of `num_rows` rows, and what it took."""
    chosen = np.random.default_rng(0).choice(num_rows, num_read, replace=False)
    keys = [key_of(int(row)) for row in chosen]
    before, began_s = _read_bytes(), time.process_time()
    reader = CacheReader(cache.folder)
    opened_s, opened = time.process_time() - began_s, _read_bytes() - before
    reader.lookup(keys)
    facts = {
        "rows_read": num_read,
        "open_cpu_s": opened_s,
        "open_read_bytes": opened,
        "cpu_s": time.process_time() - began_s,
        "read_bytes": _read_bytes() - before,
        "shards_opened": reader.num_verified,
        "mapped_shard_bytes": reader.bytes_verified,
        "index_bytes": sum(path.stat().st_size for path in _index(cache).iterdir()),
    }
    reader.close()
    return facts


def needed(num_shards: int, rows: int, num_read: int) -> int:
    """Shards that hold the rows of `read`."""
    chosen = np.random.default_rng(0).choice(num_shards * rows, num_read, replace=False)
    return len(np.unique(chosen // rows))


def _index(cache: ReferenceCache) -> Path:
    return cache.folder / INDEX_FOLDER / (newest_name(cache.folder) or "")


def _read_bytes() -> int:
    """Bytes that this process has read by system calls."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["rchar"])


def measured(folder: Path, num_shards: int, rows: int, *, is_compacted: bool) -> dict[str, Any]:
    """All facts of a cache of that many shards."""
    began_s = time.process_time()
    cache = plant(folder, num_shards, rows)
    facts: dict[str, Any] = {"plant_cpu_s": time.process_time() - began_s, "reads": []}
    num_rows = num_shards * rows
    cache_bytes = sum(path.stat().st_size for path in (cache.folder / "shards").glob("*.arrow"))
    for num_read in sorted({min(128, num_rows), num_rows // 64}):
        facts["reads"].append({**read(cache, num_rows, num_read), "shards_needed": needed(num_shards, rows, num_read)})
    facts["shard_bytes"] = cache_bytes
    if is_compacted:
        began_s = time.process_time()
        with patch.object(durable, "fsync"):
            done = compact_cache(cache.folder)
        compacted_s, began_s = time.process_time() - began_s, time.process_time()
        removed = collect_garbage(folder, grace_s=0)
        facts["compacted"] = {
            "cpu_s": compacted_s,
            "collect_cpu_s": time.process_time() - began_s,
            "removed": len(removed),
            "shards": done.shards,
            "bytes": done.bytes,
            "reads": [read(cache, num_rows, min(128, num_rows))],
        }
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--compact", action="store_true", help="and merge them, and read again")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        facts = measured(Path(folder), args.shards, args.rows, is_compacted=args.compact)
    print(save(args.out, f"cache_shards_{args.shards}", cpu_cores(), vars(args), facts))


if __name__ == "__main__":
    main()
