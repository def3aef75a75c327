"""Folders that count as a whole: checkpoints. `COMMIT.json`, written last, lists every file with size and hash.

Decision: a folder gets its final name only after its manifest is on disk, and a reader trusts nothing but a manifest
that verifies. Files that are not in the manifest are ignored.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raydpo.artifacts.digest import digest_of, file_sha256
from raydpo.artifacts.durable import COMMIT, crash_point, fsync, strict, write_json
from raydpo.artifacts.lease import fence, require_lease, settle
from raydpo.artifacts.placeholder import fetch, left_out
from raydpo.disk import full_disk
from raydpo.errors import IntegrityError
from raydpo.schema.json_text import read_object

REMOVED = ".removed-"
"""Start of the name of a folder that is being deleted."""


def commit_folder(
    staging: Path,
    final: Path,
    meta: Mapping[str, Any],
    *,
    replace: bool = False,
    hashed: Mapping[str, tuple[int, str]] | None = None,
) -> None:
    """Make `staging` durable and call it `final`, which must not exist unless `replace`. `meta` is kept in the manifest.

    hashed: name -> (bytes, SHA-256 in hex) of files that were hashed while they were written, and are not read again.

    Raises LostLeaseError, leaving `final` as it is, in a run directory that another driver took over.
    """
    with full_disk(final):
        try:
            _commit(staging, final, meta, replace, hashed or {})
        except FileNotFoundError:
            require_lease(final)  # another driver swept the staging folder away
            raise
    settle(final)


def _commit(
    staging: Path, final: Path, meta: Mapping[str, Any], replace: bool, hashed: Mapping[str, tuple[int, str]]
) -> None:
    files = {}
    for path in sorted(staging.rglob("*")):
        if (found := left_out(path)) is not None:  # a rank of another node has put it into the store
            files[path.relative_to(staging).as_posix()] = {"bytes": found[1].bytes, "sha256": found[1].sha256}
            continue
        fsync(path)  # of sub-folders too: their entries must survive a power cut like the files
        if not path.is_file() or path == staging / COMMIT:
            continue
        name = path.relative_to(staging).as_posix()
        num_bytes, digest = hashed.get(name) or (path.stat().st_size, file_sha256(path))
        if path.stat().st_size != num_bytes:
            raise IntegrityError(f"{path} has {path.stat().st_size:,} bytes, and {num_bytes:,} were written to it")
        files[name] = {"bytes": num_bytes, "sha256": digest}
    body = {"files": files, "meta": strict(dict(meta))}
    crash_point("folder:before-manifest")
    write_json(staging / COMMIT, {**body, "digest": digest_of(body)})
    crash_point("folder:before-rename")
    fence(final)
    if replace and final.exists():
        discard(final)
    os.rename(staging, final)
    fsync(final.parent)
    crash_point("folder:after-rename")


def discard(folder: Path) -> None:
    """Delete a folder, so that a kill in the middle leaves none that counts."""
    doomed = folder.with_name(f"{REMOVED}{folder.name}-{uuid.uuid4().hex[:6]}")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def read_commit(folder: Path) -> dict[str, Any]:
    """The manifest of a committed folder. Raises IntegrityError when it is missing or damaged."""
    try:
        commit = read_object(folder / COMMIT)
        body = {"files": commit["files"], "meta": commit["meta"]}
        whole = digest_of(body) == commit["digest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{folder / COMMIT} is missing or cannot be read ({type(error).__name__})") from error
    if not whole:
        raise IntegrityError(f"{folder / COMMIT} is damaged: its digest does not fit its content")
    if (
        not isinstance(body["meta"], dict)
        or not isinstance(body["files"], dict)
        or not all(map(_is_file, *_pairs(body)))
    ):
        raise IntegrityError(
            f"{folder / COMMIT} is no manifest of files below its folder, with their sizes and digests"
        )
    return body


def _pairs(body: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    return list(body["files"]), list(body["files"].values())


def _is_file(name: str, expected: Any) -> bool:
    """Whether an entry of a manifest is a file below its folder."""
    is_below = not name.startswith("/") and "\0" not in name and not {"", ".", ".."} & set(name.split("/"))
    return is_below and isinstance(expected, dict) and {"bytes", "sha256"} <= expected.keys()


def verify_folder(folder: Path) -> list[str]:
    """Everything that is wrong with a committed folder; an empty list if it is as it was committed."""
    try:
        fetch(folder)
        files = read_commit(folder)["files"]
    except IntegrityError as error:
        return [str(error)]
    problems = []
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif path.stat().st_size != expected["bytes"]:
            problems.append(f"{path} has {path.stat().st_size} bytes, {expected['bytes']} were committed")
        elif file_sha256(path) != expected["sha256"]:
            problems.append(f"{path} differs from what was committed (sha256)")
    return problems


def newest_valid(parent: Path, prefix: str) -> tuple[Path | None, list[str]]:
    """The committed folder with the highest number that verifies, and a line for each damaged one above it."""
    skipped: list[str] = []
    folders = (p for p in parent.glob(f"{prefix}*") if p.is_dir() and p.name[len(prefix) :].isdecimal())
    for path in sorted(folders, key=lambda p: int(p.name[len(prefix) :]), reverse=True):
        problems = verify_folder(path)
        if not problems:
            return path, skipped
        skipped.append(f"{path.name}: {problems[0]}")
    return None, skipped
