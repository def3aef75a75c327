"""What can go from a cache directory: whatever no commit, no run and no open reader reaches.

Comes in: the folder of caches. Goes out: what was removed, or in a dry run would be, with the reason. Decision: candidates are
found without a lock; each is looked at once more while nobody writes, and removed then, the record before its file. A shard
that was replaced goes only after the shard that has its rows was read and verified, and when every living reader has said that
it does not read it. The price is that reading. Whole caches go only when that is asked for.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from raydpo.artifacts.cache_index import INDEX_FOLDER, newest_name
from raydpo.artifacts.cache_lock import removing
from raydpo.artifacts.cache_records import read_record, recorded_files
from raydpo.artifacts.cache_shards import read_verified
from raydpo.artifacts.claim import is_claimed, unclaim
from raydpo.artifacts.durable import TEMPORARY, crash_point
from raydpo.artifacts.housekeeping import cache_folders, last_used, size_of
from raydpo.artifacts.open_readers import Reach, open_readers
from raydpo.artifacts.replaced import REPLACED, replacements
from raydpo.errors import IntegrityError

GRACE_S = 24 * 3600.0
"""What is younger than this may belong to a run that is alive, or to a reader that nobody knows of."""
_AT_A_TIME = 64
"""Files that are removed while writers wait."""


@dataclass(frozen=True)
class Removal:
    """Something that was, or in a dry run would be, removed.

    path: what; of an object its address.
    bytes: its size.
    reason: why it may go.
    """

    path: Path | str
    bytes: int
    reason: str


@dataclass(frozen=True)
class _Doomed:
    """A file that may go. is_garbage: looks once more whether it is."""

    path: Path
    reason: str
    is_garbage: Callable[[], bool]


def collect_garbage(
    cache_dir: Path,
    *,
    older_than_days: float | None = None,
    keep: Collection[str] = (),
    dry_run: bool = False,
    grace_s: float = GRACE_S,
) -> list[Removal]:
    """Remove leftovers, damaged and replaced shards and, with `older_than_days`, caches unused for that long.

    keep: digests of caches that stay. grace_s: age from which on a leftover is one.
    """
    now = time.time()
    removals = []
    for path in _aged(cache_dir.glob(f"{TEMPORARY}*"), now, grace_s):
        removals.append(Removal(path, size_of(path), "half removed"))
        if not dry_run:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for folder in cache_folders(cache_dir):
        unused_days = (now - last_used(folder)) / 86400
        is_old = older_than_days is not None and unused_days >= older_than_days
        if is_old and folder.name not in keep and not _is_in_use(folder):
            removals.append(Removal(folder, size_of(folder), f"not used for {unused_days:.0f} days"))
            if not dry_run:
                _remove_cache(folder)
        else:
            removals += _collect(folder, now, grace_s, dry_run)
    return removals


def _collect(folder: Path, now: float, grace_s: float, dry_run: bool) -> list[Removal]:
    """What goes from one cache, which stays."""
    doomed = list(_candidates(folder, now, grace_s, open_readers(folder, clear=not dry_run)))
    removals = []
    for start in range(0, len(doomed), _AT_A_TIME):
        group = doomed[start : start + _AT_A_TIME]
        sized = [(each, size_of(each.path)) for each in group]
        if not dry_run:
            with removing(folder) as is_alone:
                sized = [pair for pair in sized if is_alone and _remove(pair[0])]
        removals += [Removal(each.path, num_bytes, each.reason) for each, num_bytes in sized]
    return removals


def _remove(doomed: _Doomed) -> bool:
    if not doomed.is_garbage():
        return False
    crash_point("removal:before-file")
    if doomed.path.is_dir():
        shutil.rmtree(doomed.path)
    else:
        doomed.path.unlink(missing_ok=True)
    return True


def _candidates(folder: Path, now: float, grace_s: float, readers: list[Reach]) -> Iterator[_Doomed]:
    for path in sorted(folder.glob("damaged/*")):
        yield _Doomed(path, "damaged shard", path.exists)
    for path in _aged(folder.rglob(f"{TEMPORARY}*"), now, grace_s):
        yield _Doomed(path, "leftover of a killed run", path.exists)
    for path in _aged(folder.glob("claims/*"), now, grace_s):
        if not is_claimed(path.parent, path.name):
            yield _Doomed(path, "leftover of a killed run", partial(unclaim, path.parent, path.name))
    if not readers:  # a file whose record was written anew for other values may be mapped by who read it before
        yield from _orphans(folder, now, grace_s)
    yield from _replaced(folder, now, grace_s, readers)
    yield from _old_indexes(folder, now, grace_s, readers)


def _orphans(folder: Path, now: float, grace_s: float) -> Iterator[_Doomed]:
    recorded = recorded_files(folder)
    for path in _aged((folder / "shards").glob("[!.]*.arrow"), now, grace_s):
        if path.name not in recorded:
            yield _Doomed(path, "shard that no record names", partial(_is_orphan, folder, path.name))


def _is_orphan(folder: Path, file: str) -> bool:
    return not _is_named(folder, file)


def _is_named(folder: Path, file: str) -> bool:
    """Whether the record of the shard whose rows are in `file` names that file now."""
    try:
        return read_record(folder, file.rpartition("-")[0]).name == file
    except IntegrityError:
        return False


def _replaced(folder: Path, now: float, grace_s: float, readers: list[Reach]) -> Iterator[_Doomed]:
    """Records and files of shards that merged ones replaced, and lists of which nothing is left."""
    lists = replacements(folder)
    ruled_out = [{file for merged in reader.merged for file in lists.get(merged, {}).values()} for reader in readers]
    for merged, shards in lists.items():
        record = folder / "shards" / f"{merged}.json"
        if not _aged([record], now, grace_s):
            continue
        free = {name: file for name, file in shards.items() if all(file in files for files in ruled_out)}
        parts = [part for name, file in free.items() for part in _parts(folder, name, file)]
        if parts and not _is_whole(folder, merged):
            continue
        for part in parts:
            yield _Doomed(
                part, "shard that was merged into another", partial(_is_replaced, folder, merged, shards, part)
            )
        if len(free) == len(shards):
            path = folder / REPLACED / f"{merged}.json"
            yield _Doomed(path, "list of merged shards that are gone", partial(_is_nothing_left, folder, shards))
    for path in _aged((folder / REPLACED).glob("[!.]*.json"), now, grace_s):
        if path.stem not in lists:
            yield _Doomed(path, "list of a shard that is not there", partial(_is_void, folder, path.stem))


def _parts(folder: Path, name: str, file: str) -> list[Path]:
    """What is there of a shard, the record first. Its record may be that of another file by now."""
    parts = [folder / "shards" / f"{name}.json"] if _is_named(folder, file) else []
    return [*parts, *(path for path in [folder / "shards" / file] if path.exists())]


def _is_whole(folder: Path, name: str) -> bool:
    try:
        read_verified(folder, read_record(folder, name))
    except IntegrityError:
        return False
    return True


def _is_replaced(folder: Path, merged: str, shards: dict[str, str], part: Path) -> bool:
    """Whether the record or file `part` of one of `shards` has a merged shard in its place still."""
    if not (folder / REPLACED / f"{merged}.json").is_file() or not _has_file(folder, merged):
        return False
    if part.suffix == ".json":
        return _is_named(folder, shards[part.stem])
    return not _is_named(folder, part.name)


def _has_file(folder: Path, name: str) -> bool:
    with suppress(IntegrityError):
        return (folder / "shards" / read_record(folder, name).name).is_file()
    return False


def _is_nothing_left(folder: Path, shards: dict[str, str]) -> bool:
    return not any(_parts(folder, name, file) for name, file in shards.items())


def _is_void(folder: Path, merged: str) -> bool:
    return merged not in replacements(folder)


def _old_indexes(folder: Path, now: float, grace_s: float, readers: list[Reach]) -> Iterator[_Doomed]:
    """Indexes that no new reader takes and no living one maps."""
    mapped = {reader.index for reader in readers}
    for path in _aged((folder / INDEX_FOLDER).glob("[!.]*"), now, grace_s):
        if path.name != newest_name(folder) and None not in mapped and path.name not in mapped:
            yield _Doomed(path, "index of fewer shards", partial(_is_old_index, folder, path.name))


def _is_old_index(folder: Path, name: str) -> bool:
    return name != newest_name(folder)


def _aged(paths: Iterable[Path], now: float, grace_s: float) -> list[Path]:
    """Those that nobody has written to for long. A live run may rename a file between any two looks at it."""
    old = []
    for path in paths:
        with suppress(FileNotFoundError):
            if now - path.stat().st_mtime >= grace_s:
                old.append(path)
    return sorted(old)


def _is_in_use(folder: Path) -> bool:
    claims = folder / "claims"
    return bool(open_readers(folder)) or any(is_claimed(claims, path.name) for path in claims.glob("*"))


def _remove_cache(folder: Path) -> None:
    doomed = folder.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:12]}-{folder.name}")
    folder.rename(doomed)  # from here on it is no cache, and a later collection ends what we may not
    shutil.rmtree(doomed)
