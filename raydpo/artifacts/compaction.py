"""Many small shards of a cache become a few large ones with the same rows and, bit for bit, the same values.

Comes in: the folder of a cache. Goes out: merged shards that count, and what there was before and after. Decision: a merged
shard has, for every row of those that it replaces, the value that the cache gives for it; it begins to count in the moment in
which they cease to, and their files stay until `cache gc` finds that nobody reads them. Runs may add shards meanwhile. The
price is that the cache takes twice its room for so long.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from raydpo.artifacts.cache_shards import VerifiedShard
from raydpo.artifacts.claim import claimed
from raydpo.artifacts.digest import digest_of
from raydpo.artifacts.reference_cache import ReferenceCache, read_identity
from raydpo.artifacts.replaced import replacements
from raydpo.errors import UserError

MERGED_BYTES = 64 << 20
"""Of a merged shard; one from half of this on is left alone."""
_CLAIM = "compaction"
_MERGED, _MOST_MERGES = re.compile(r"0-merged-(\d{8})-"), 10**8


@dataclass(frozen=True)
class Compacted:
    """What became of one cache.

    digest, folder: which.
    shards_before, shards, bytes_before, bytes: that count, with the size of their files.
    damaged: shards that cannot be read and were left where they are.
    """

    digest: str
    folder: Path
    shards_before: int
    shards: int
    bytes_before: int
    bytes: int
    damaged: tuple[str, ...] = ()


def compact_cache(folder: Path, merged_bytes: int = MERGED_BYTES) -> Compacted:
    """Merge the small shards of a cache into some of at most about `merged_bytes`. Raises UserError while another process does,
    StorageError, and IntegrityError where the cache is not what its folder says."""
    cache = ReferenceCache(folder.parent, read_identity(folder))
    with claimed(cache.claims, _CLAIM) as is_ours:
        if not is_ours:
            raise UserError(
                f"{folder} is being compacted by another process. Nothing was changed. Wait for it, or end it: what it has "
                "merged until then counts."
            )
        before = _sizes(cache.open(is_owner=False).shards())
        for group in _groups(cache.shards(), merged_bytes):
            _merge(cache, group)
        after = _sizes(cache.open(is_owner=False).shards())
        if len(after) < len(before):
            cache.write_index(is_due=True)
    return Compacted(
        folder.name, folder, len(before), len(after), sum(before), sum(after), tuple(sorted(set(cache.damaged)))
    )


def _sizes(shards: Mapping[str, VerifiedShard]) -> list[int]:
    return [shard.record.bytes for shard in shards.values()]


def _groups(shards: Mapping[str, VerifiedShard], merged_bytes: int) -> Iterator[list[str]]:
    """Names of small shards, as many as fit into one large one; none of one shard alone."""
    group, num_bytes = list[str](), 0
    for name, shard in list(shards.items()):
        if 2 * shard.num_bytes > merged_bytes:
            continue
        if num_bytes + shard.num_bytes > merged_bytes:
            yield group
            group, num_bytes = [], 0
        group.append(name)
        num_bytes += shard.num_bytes
    if len(group) > 1:
        yield group


def _merge(cache: ReferenceCache, group: list[str]) -> None:
    shards, lists = cache.shards(), replacements(cache.folder)
    files = {name: shards[name].record.name for name in group}
    keys = list(dict.fromkeys(key for name in group for key in shards[name].table()["row_key"].to_pylist()))
    older = {name: file for merged in group for name, file in lists.get(merged, {}).items()}
    name = f"{_first_of_all(shards)}-{digest_of(sorted(files.values()))[:24]}"
    cache.merge_shards(name, keys, cache.lookup(keys), {**older, **files})


def _first_of_all(shards: Mapping[str, VerifiedShard]) -> str:
    """Start of a name before all others: of a row that stands in several shards, the first one's value is given."""
    taken = [int(found[1]) for name in shards if (found := _MERGED.match(name))]
    return f"0-merged-{min(taken, default=_MOST_MERGES) - 1:08d}"
