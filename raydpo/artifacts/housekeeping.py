"""Looking after a cache directory: what is there, and is it whole.

Comes in: a folder of caches. Goes out: counts, and a line for each damaged shard. Decision: counts come from verified shards
that count, so looking costs reading; nothing is changed. What can go is in `garbage.py`.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from raydpo.artifacts.cache_shards import live_names, read_shards
from raydpo.artifacts.reference_cache import IDENTITY, read_identity
from raydpo.errors import IntegrityError


@dataclass(frozen=True)
class CacheInfo:
    """One cache of a cache directory.

    digest: names the cache.
    folder: where it is.
    shards, rows, tokens, bytes: how many of each; tokens are answer tokens.
    last_used: seconds since the epoch.
    identity: who the reference is; {} if damaged.
    """

    digest: str
    folder: Path
    shards: int
    rows: int
    tokens: int
    bytes: int
    last_used: float
    identity: dict[str, str]


def cache_folders(cache_dir: Path) -> list[Path]:
    """Folders of all caches under `cache_dir`: only those named like one, so that a mistyped directory loses nothing."""
    found = (path.parent for path in cache_dir.glob(f"*/{IDENTITY}"))
    return sorted(folder for folder in found if re.fullmatch("[0-9a-f]{32}", folder.name))


def list_caches(cache_dir: Path) -> list[CacheInfo]:
    """Every cache, most recently used first. Counts come from verified shards."""
    infos = []
    for folder in cache_folders(cache_dir):
        shards = read_shards(folder, {})[0].values()
        rows, tokens = sum(shard.num_rows for shard in shards), sum(shard.num_tokens for shard in shards)
        identity: dict[str, str] = {}
        with suppress(IntegrityError):
            identity = asdict(read_identity(folder))
        counts = len(live_names(folder)), rows, tokens, size_of(folder)
        infos.append(CacheInfo(folder.name, folder, *counts, last_used(folder), identity))
    return sorted(infos, key=lambda info: -info.last_used)


def verify_caches(cache_dir: Path) -> tuple[int, list[str]]:
    """(shards that were checked, one line for each that is damaged). Changes nothing."""
    checked, problems = 0, []
    for folder in cache_folders(cache_dir):
        checked += len(live_names(folder))
        try:
            read_identity(folder)
        except IntegrityError as error:
            problems.append(str(error))
        problems += [problem for _, problem in read_shards(folder, {})[1]]
    return checked, problems


def last_used(folder: Path) -> float:
    """When the cache was last opened or written to, seconds since the epoch."""
    times = [0.0]
    for path in (folder / IDENTITY, folder / "shards"):
        with suppress(FileNotFoundError):
            times.append(path.stat().st_mtime)
    return max(times)


def size_of(folder: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    total = 0
    for path in [folder, *folder.rglob("*")]:
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total
