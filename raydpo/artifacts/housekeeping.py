"""Looking after a cache directory: what is there, is it whole, what can go.

Decision: only leftovers of dead attempts, damaged shards that were set aside, and caches that nobody opened for a given
time are ever removed; by default nothing but leftovers.
"""

from __future__ import annotations

import re
import shutil
import time
import uuid
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from raydpo.artifacts.cache_index import INDEX_FOLDER, newest_name
from raydpo.artifacts.durable import TEMPORARY
from raydpo.artifacts.reference_cache import IDENTITY, read_cache, read_identity, recorded_files, shard_names
from raydpo.errors import IntegrityError

LEFTOVER_AGE_S = 24 * 3600.0
"""A temporary file younger than this may belong to a run that is alive."""


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


@dataclass(frozen=True)
class Removal:
    """Something that was, or in a dry run would be, removed.

    path: what.
    bytes: its size.
    reason: why it may go.
    """

    path: Path
    bytes: int
    reason: str


def cache_folders(cache_dir: Path) -> list[Path]:
    """Folders of all caches under `cache_dir`: only those named like one, so that a mistyped directory loses nothing."""
    found = (path.parent for path in cache_dir.glob(f"*/{IDENTITY}"))
    return sorted(folder for folder in found if re.fullmatch("[0-9a-f]{32}", folder.name))


def list_caches(cache_dir: Path) -> list[CacheInfo]:
    """Every cache, most recently used first. Counts come from verified shards."""
    infos = []
    for folder in cache_folders(cache_dir):
        table, _ = read_cache(folder)
        tokens = int(sum(table["num_tokens"].to_pylist()))
        identity: dict[str, str] = {}
        with suppress(IntegrityError):
            identity = asdict(read_identity(folder))
        last_used = _last_used(folder)
        shards = len(list(shard_names(folder)))
        infos.append(CacheInfo(folder.name, folder, shards, table.num_rows, tokens, _size(folder), last_used, identity))
    return sorted(infos, key=lambda info: -info.last_used)


def verify_caches(cache_dir: Path) -> tuple[int, list[str]]:
    """(shards that were checked, one line for each that is damaged). Changes nothing."""
    checked, problems = 0, []
    for folder in cache_folders(cache_dir):
        checked += len(list(shard_names(folder)))
        try:
            read_identity(folder)
        except IntegrityError as error:
            problems.append(str(error))
        problems += [problem for _, problem in read_cache(folder)[1]]
    return checked, problems


def collect_garbage(
    cache_dir: Path, *, older_than_days: float | None = None, keep: Collection[str] = (), dry_run: bool = False
) -> list[Removal]:
    """Remove leftovers, damaged shards and, with `older_than_days`, caches unused for that long (except `keep`)."""
    now = time.time()
    removals = [Removal(path, _size(path), "half removed") for path in _leftovers(cache_dir.glob(f"{TEMPORARY}*"), now)]
    for folder in cache_folders(cache_dir):
        unused_days = (now - _last_used(folder)) / 86400
        if older_than_days is not None and unused_days >= older_than_days and folder.name not in keep:
            removals.append(Removal(folder, _size(folder), f"not used for {unused_days:.0f} days"))
            continue
        removals += [Removal(path, _size(path), "damaged shard") for path in sorted(folder.glob("damaged/*"))]
        for path in _leftovers([*folder.rglob(f"{TEMPORARY}*"), *folder.glob("claims/*")], now):
            removals.append(Removal(path, _size(path), "leftover of a killed run"))
        removals += _orphans(folder, now)
        removals += _old_indexes(folder, now)
    if not dry_run:
        for removal in removals:
            _remove(removal.path)
    return removals


def _orphans(folder: Path, now: float) -> list[Removal]:
    old = _leftovers((folder / "shards").glob("*.arrow"), now)
    recorded = recorded_files(folder)
    return [
        Removal(path, _size(path), "shard that no record names")
        for path in old
        if path.name not in recorded and not path.name.startswith(TEMPORARY)
    ]


def _old_indexes(folder: Path, now: float) -> list[Removal]:
    """Indexes that no new reader takes."""
    newest = newest_name(folder)
    old = _leftovers((folder / INDEX_FOLDER).glob("*"), now)
    return [Removal(path, _size(path), "index of fewer shards") for path in old if path.name != newest]


def _leftovers(paths: Iterable[Path], now: float) -> list[Path]:
    """Those that nobody has written to for long. A live run may rename a file between any two looks at it."""
    old = []
    for path in paths:
        with suppress(FileNotFoundError):
            if now - path.stat().st_mtime >= LEFTOVER_AGE_S:
                old.append(path)
    return sorted(old)


def _last_used(folder: Path) -> float:
    """When the cache was last opened or written to, seconds since the epoch."""
    times = [0.0]
    for path in (folder / IDENTITY, folder / "shards"):
        with suppress(FileNotFoundError):
            times.append(path.stat().st_mtime)
    return max(times)


def _remove(path: Path) -> None:
    if path.is_dir():
        doomed = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:12]}-{path.name}")
        path.rename(doomed)  # from here on it is no cache, and a later collection ends what we may not
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


def _size(folder: Path) -> int:
    total = 0
    for path in [folder, *folder.rglob("*")]:
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total
