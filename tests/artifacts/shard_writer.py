"""`python -m tests.artifacts.shard_writer CACHE_DIR ROUNDS SHIFT_NATS`: commits the golden shards again and again.

SHIFT_NATS: taken from every value, as another kernel or batch size would change it a little.
"""

from __future__ import annotations

import sys
from pathlib import Path

from raydpo.artifacts import ReferenceCache
from tests.artifacts.golden import IDENTITY, SHARDS, rows_of


def main(cache_dir: Path, rounds: int, shift_nats: float) -> None:
    cache = ReferenceCache(cache_dir, IDENTITY)
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(rounds):
        for shard in SHARDS:
            rows = rows_of(shard)
            cache.write_shard(shard, [*rows], [nats - shift_nats for nats in rows.values()])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
