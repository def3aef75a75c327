"""Looking after a cache directory: what is there, is it whole, what can go.

Decision: only leftovers of dead attempts, damaged shards that were set aside, and caches that nobody opened for a given
time are ever removed; by default nothing but leftovers.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from raydpo.artifacts.durable import TEMPORARY
from raydpo.artifacts.reference_cache import IDENTITY, read_cache, shard_names

LEFTOVER_AGE_S = 24 * 3600.0
"""A temporary file younger than this may belong to a run that is alive."""


@dataclass(frozen=True)
class CacheInfo:
    """One cache of a cache directory. tokens: answer tokens. last_used: seconds since the epoch."""

    digest: str
    folder: Path
    shards: int
    rows: int
    tokens: int
    bytes: int
    last_used: float
    identity: dict[str, str]


@dataclass(frozen=True)
class Removal:
    """Something that was, or in a dry run would be, removed."""

    path: Path
    bytes: int
    reason: str


def cache_folders(cache_dir: Path) -> list[Path]:
    """Folders of all caches under `cache_dir`."""
    return sorted(path.parent for path in cache_dir.glob(f"*/{IDENTITY}"))


def list_caches(cache_dir: Path) -> list[CacheInfo]:
    """Every cache, most recently used first. Counts come from verified shards."""
    infos = []
    for folder in cache_folders(cache_dir):
        table, _ = read_cache(folder)
        tokens = int(sum(table["num_tokens"].to_pylist()))
        identity = json.loads((folder / IDENTITY).read_text())
        last_used = (folder / IDENTITY).stat().st_mtime
        shards = len(list(shard_names(folder)))
        infos.append(CacheInfo(folder.name, folder, shards, table.num_rows, tokens, _size(folder), last_used, identity))
    return sorted(infos, key=lambda info: -info.last_used)


def verify_caches(cache_dir: Path) -> tuple[int, list[str]]:
    """(shards that were checked, one line for each that is damaged). Changes nothing."""
    checked, problems = 0, []
    for folder in cache_folders(cache_dir):
        checked += len(list(shard_names(folder)))
        problems += [problem for _, problem in read_cache(folder)[1]]
    return checked, problems


def collect_garbage(
    cache_dir: Path, *, older_than_days: float | None = None, keep: Collection[str] = (), dry_run: bool = False
) -> list[Removal]:
    """Remove leftovers, damaged shards and, with `older_than_days`, caches unused for that long (except `keep`)."""
    now, removals = time.time(), []
    for folder in cache_folders(cache_dir):
        unused_days = (now - (folder / IDENTITY).stat().st_mtime) / 86400
        if older_than_days is not None and unused_days >= older_than_days and folder.name not in keep:
            removals.append(Removal(folder, _size(folder), f"not used for {unused_days:.0f} days"))
            continue
        removals += [Removal(path, path.stat().st_size, "damaged shard") for path in sorted(folder.glob("damaged/*"))]
        for path in sorted(folder.rglob(f"{TEMPORARY}*")):
            if now - path.stat().st_mtime >= LEFTOVER_AGE_S:
                removals.append(Removal(path, path.stat().st_size, "leftover of a killed run"))
        removals += _orphans(folder, now)
    if not dry_run:
        for removal in removals:
            _remove(removal.path)
    return removals


def _orphans(folder: Path, now: float) -> list[Removal]:
    recorded = set(shard_names(folder))
    return [
        Removal(path, path.stat().st_size, "shard that was never committed")
        for path in sorted((folder / "shards").glob("*.arrow"))
        if path.stem not in recorded
        and not path.name.startswith(TEMPORARY)
        and now - path.stat().st_mtime >= LEFTOVER_AGE_S
    ]


def _remove(path: Path) -> None:
    if path.is_dir():
        (path / IDENTITY).unlink(missing_ok=True)  # from here on it is no cache, even if we are killed
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
