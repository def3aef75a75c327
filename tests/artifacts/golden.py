"""The cache, folder and examples that tests of this package write: always the same rows, from a fixed seed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from raydpo.artifacts import CacheIdentity, ExampleTable, ReferenceCache

IDENTITY = CacheIdentity("weights", "none", "tokenizer", "float32", "sdpa-cpu", "answer-logprobs-1")
SHARDS = ("first", "second", "third")
ROWS_PER_SHARD = 7

Rows = dict[str, np.ndarray]


def rows_of(shard: str) -> Rows:
    """Row key -> log-probs of the rows of one shard: ragged, one of them empty."""
    rng = np.random.default_rng(SHARDS.index(shard))
    keys = [hashlib.sha256(f"{shard} {i}".encode()).hexdigest()[:32] for i in range(ROWS_PER_SHARD)]
    return {key: -rng.exponential(2.0, 11 * i).astype(np.float32) for i, key in enumerate(keys)}


def all_rows(*shards: str) -> Rows:
    """Rows of several shards; of all without an argument."""
    return {key: nats for shard in shards or SHARDS for key, nats in rows_of(shard).items()}


def write(cache_dir: Path, *shards: str, identity: CacheIdentity = IDENTITY) -> ReferenceCache:
    """A cache with these shards; all without an argument. Not opened yet."""
    cache = ReferenceCache(cache_dir, identity)
    for shard in shards or SHARDS:
        rows = rows_of(shard)
        cache.write_shard(shard, list(rows), list(rows.values()))
    return cache


def shard_file(cache: ReferenceCache, shard: str) -> Path:
    """The Arrow file of a shard."""
    (path,) = (cache.folder / "shards").glob(f"{shard}*.arrow")
    return path


def assert_holds(cache: ReferenceCache, expected: Rows) -> None:
    """`cache`, opened, holds exactly `expected`: no row less, more, twice or changed."""
    table = cache.table()
    assert sorted(table["row_key"].to_pylist()) == sorted(expected)
    assert cache.missing([*expected]) == []
    for key, nats, num_tokens in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
        assert num_tokens == len(expected[key])
        np.testing.assert_array_equal(np.array(nats, np.float32), expected[key])
    for nats, wanted in zip(cache.lookup([*expected]), expected.values(), strict=True):
        assert nats.dtype == np.float32
        np.testing.assert_array_equal(nats, wanted)


Example = tuple[list[int], list[list[int]], list[str], str]

EXAMPLES: list[Example] = [
    ([1, *range(5, 5 + i)], [[7] * i, [8, 2]], [f"{i:032x}", f"{i + 100:032x}"], f"pairs.jsonl:{i + 1}")
    for i in range(5)
]


def examples_in(table: ExampleTable) -> list[Example]:
    """Everything that a table says, as plain values."""
    return [
        (
            table.prompt_ids(i).tolist(),
            [ids.tolist() for ids in table.answer_ids(i)],
            table.row_keys(i),
            table.source(i),
        )
        for i in range(len(table))
    ]
