"""Shards whose rows a larger one has: lists that begin to count with the commit record of the larger one.

Layout: `<cache>/replaced/<merged shard>.json`: `by`, the file of the merged shard, and `shards`, name -> file of each that it
replaces, those that they had replaced among them. Decision: the list is written before the record of the merged shard and
counts only while that record is whole, so one durable write both adds the rows and lets the small shards go; a merged shard
that is damaged and set aside gives them back while they are there. The price is a list to read for who opens the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from raydpo.artifacts.cache_records import read_record, read_signed, signed
from raydpo.artifacts.durable import write_json
from raydpo.errors import IntegrityError

REPLACED = "replaced"

Replacements = dict[str, dict[str, str]]
"""Merged shard -> name -> file of each shard that it replaces."""


def write_replaced(cache: Path, merged: str, file: str, shards: Mapping[str, str]) -> None:
    """Say what the shard `merged`, whose rows are in `file`, will replace. shards: name -> file. Raises StorageError."""
    write_json(cache / REPLACED / f"{merged}.json", signed({"by": file, "shards": dict(shards)}))


def replacements(cache: Path) -> Replacements:
    """The lists that count now."""
    found = Replacements()
    for path in sorted((cache / REPLACED).glob("[!.]*.json")):
        with suppress(IntegrityError, KeyError, TypeError, ValueError):
            body = read_signed(path)
            if read_record(cache, path.stem).name == body["by"]:
                found[path.stem] = {str(name): str(file) for name, file in dict(body["shards"]).items()}
    return found


def all_replaced(lists: Replacements) -> set[str]:
    """Files of all shards that are replaced."""
    return {file for shards in lists.values() for file in shards.values()}
