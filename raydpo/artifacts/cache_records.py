"""Small signed files of a cache: what was committed of a shard, and anything else that is not believed when it is damaged.

Comes in: a JSON object. Goes out: the same with a digest over itself, and back, or IntegrityError. Decision: a shard exists
from the moment its record is whole, and no longer than that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from raydpo.artifacts.arrow import ShardRecord, hashed_name
from raydpo.artifacts.digest import digest_of
from raydpo.errors import IntegrityError
from raydpo.schema.json_text import read_object


def signed(body: Mapping[str, Any]) -> dict[str, Any]:
    """`body` with its digest."""
    return {**body, "digest": digest_of(dict(body))}


def read_signed(path: Path) -> dict[str, Any]:
    """What `signed` was given. Raises IntegrityError."""
    try:
        body = read_object(path)
        digest = body.pop("digest")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"the commit record {path} cannot be read ({type(error).__name__})") from error
    if digest != digest_of(body):
        raise IntegrityError(f"the commit record {path} is damaged: its digest does not fit its content")
    return body


def read_record(folder: Path, name: str) -> ShardRecord:
    """The commit record of shard `name`. Raises IntegrityError."""
    path = folder / "shards" / f"{name}.json"
    try:
        record = ShardRecord(**read_signed(path))
    except TypeError as error:
        raise IntegrityError(f"the commit record {path} cannot be read ({type(error).__name__})") from error
    if record.name != hashed_name(path.stem, record.sha256):
        raise IntegrityError(f"the commit record {path} is that of another shard: it names {record.name}")
    return record


def shard_names(folder: Path) -> Iterator[str]:
    """Names of all shards that have a commit record, valid or not, replaced or not."""
    yield from sorted(path.stem for path in (folder / "shards").glob("*.json") if not path.name.startswith("."))


def recorded_files(folder: Path) -> set[str]:
    """File names of all shards whose commit record is whole."""
    files = set()
    for name in shard_names(folder):
        with suppress(IntegrityError):
            files.add(read_record(folder, name).name)
    return files
