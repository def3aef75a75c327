"""A rank that opens a cache of very many small shards reads what its own rows need, by count."""

from __future__ import annotations

from pathlib import Path

from benchmarks.cache_shards import measured

RECORD_BYTES = 400
"""A commit record has fewer."""


def test_a_rank_reads_the_shards_of_its_rows_and_nothing_of_the_others(tmp_path: Path) -> None:
    facts = measured(tmp_path, 1000, 2, is_compacted=True)
    for each in facts["reads"]:
        assert each["shards_opened"] == each["shards_needed"] < 130
        assert each["mapped_shard_bytes"] * 1000 == facts["shard_bytes"] * each["shards_needed"]
        assert each["open_read_bytes"] < 32_768, "the pointer to the index, and a buffer of each of its three files"
        assert each["read_bytes"] - each["open_read_bytes"] < RECORD_BYTES * each["shards_needed"]
    merged = facts["compacted"]
    assert merged["shards"] == merged["reads"][0]["shards_opened"] == 1
    assert merged["bytes"] < facts["shard_bytes"]
    assert merged["reads"][0]["open_read_bytes"] < 32_768, "the list of what was merged is gone"
    assert merged["removed"] == 2 * 1000 + 2
