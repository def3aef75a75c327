"""Where files may lie: paths of this machine or of storage that all nodes mount, hub ids, and addresses of object stores.

Comes in: keys and the texts under them. Goes out: finished sentences. Decision: an address is taken under the keys whose
readers know object stores; any other scheme is refused by name, because `hdfs://host/run` is a fine name of a local folder to
the operating system, and would become one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from raydpo.errors import ConfigError

PLACES = (
    *("run.dir", "reference.cache_dir", "model.path", "reference.model", "evaluate.model"),
    *("data.train", "data.eval", "data.chat_template", "rounds.prompts", "rounds.eval_prompts", "rounds.reference"),
    *("judge.model", "judge.answers"),
)
"""Every key that names a file, a folder or a model. `judge.endpoint` is an address and stays one."""
_WRITTEN = ("run.dir", "reference.cache_dir")
STORES = ("s3", "gs", "az", "abfs", "abfss")
"""Schemes of object stores with a conditional put: S3 and what speaks like it, Google Cloud Storage, Azure Blob Storage."""
READ_ONLY = ("hdfs", "webhdfs", "hf", "http", "https", "sftp")
"""Schemes of storage that data and prompts are read from, by fsspec."""
_READ = ("data.train", "data.eval", "rounds.prompts", "rounds.eval_prompts")
_IN_STORES = ("run.dir", "reference.cache_dir", "model.path", "reference.model", "evaluate.model", *_READ)
"""Keys whose places may lie in an object store."""
_NAME = re.compile(r"[A-Za-z0-9_=+@,-][A-Za-z0-9_.=+@,-]*")
"""Of one part of an address: what needs no quoting anywhere and hides nowhere."""
_HOST, _LINK = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(:\d+)?"), re.compile(r"[\w=+@,%&?~:-][\w.=+@,%&?~:-]*")
"""Of an address that is only read: its host, without user or password, and each of the other parts."""
_DATA_FILE = re.compile(r"\.(jsonl|ndjson|json|csv|tsv|parquet|arrow|feather)(\.gz|\.zst)?$", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MOST_NAME_BYTES, _MOST_PATH_BYTES = 255, 4095
"""Of one folder or file, and of all of a path, on the file systems there are."""
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def unread_scheme(key: str, value: str) -> Iterator[str]:
    """A sentence if `value` is an address instead of a place that is read."""
    found = _SCHEME.match(value)
    if found is None:
        return
    if is_in_store(value) and key in _IN_STORES:
        value = re.sub(r"[*?\[\]!]", "-", value) if key in _READ else value  # a pattern
        if problem := store_problem(value):
            yield f"{key}: {value!r} {problem} Nothing was started."
        return
    if reads_only(value) and key in _READ:
        host, *names = value[found.end() :].split("/")
        odd = [host] * (not _HOST.fullmatch(host)) + [name for name in names if not _LINK.fullmatch(name)]
        if odd:
            yield f"{key}: {value!r} has the part {odd[0]!r}, which no address may have here. Nothing was started."
        return
    rest = value[found.end() :]
    yield (
        f"{key}: {value!r} begins with {found[0]}, which is not read or written here; it would have become a local folder "
        f"named {found[0].removesuffix('//')!r}. Give a path that every node sees (storage that is mounted counts)"
        + (f", here /{rest.lstrip('/')}." if found[0] == "file://" else ", or copy the files there first.")
    )


def is_in_store(place: str) -> bool:
    """Whether a place is an address of an object store."""
    return place.partition("://")[0] in STORES and "://" in place


def reads_only(place: str) -> bool:
    """Whether a place is an address of storage that is read and never written."""
    return place.partition("://")[0] in READ_ONLY and "://" in place


def store_problem(url: str) -> str:
    """What is wrong with the address of something in an object store, as the rest of a sentence; empty for a good one."""
    scheme, _, rest = url.partition("://")
    bucket, *names = rest.rstrip("/").split("/")
    if scheme not in STORES:
        return (
            f"is no address of an object store; these are read and written: {', '.join(f'{one}://' for one in STORES)}."
        )
    if not bucket or not names:
        return f"names no folder in a bucket; the form is {scheme}://bucket/name."
    if odd := [name for name in (bucket, *names) if not _NAME.fullmatch(name)]:
        return f"has the part {odd[0]!r}; letters, digits and _ . = + @ , - are allowed, and no dot at the start."
    return ""


def no_path(key: str, value: str) -> Iterator[str]:
    """A sentence if `value` cannot be the name of a folder or file, or of none that a log could be read with."""
    found = _CONTROL.search(value)
    if found is not None and (found[0] == "\0" or key in _WRITTEN):
        what = {"\0": "a NUL character", "\n": "a line break"}.get(found[0], "a control character")
        yield f"{key}: {value[:200]!r} holds {what}, which no path may have here. Write the path without it."
    names = os.fsencode(value.encode("utf-8", "replace").decode()).split(b"/")
    if max(map(len, names)) > _MOST_NAME_BYTES or sum(map(len, names)) + len(names) > _MOST_PATH_BYTES:
        yield (
            f"{key}: a path of {len(value):,} characters, {value[:60]!r}...; a name in it may have {_MOST_NAME_BYTES} bytes, "
            f"all of it {_MOST_PATH_BYTES:,}. Choose a shorter one."
        )


def may_hold_out(name: str) -> bool:
    """Whether a text of data.train may name a data set with a held-out part: anything but one file or one split."""
    if name.startswith("hub:"):
        return ":" not in name.removeprefix("hub:")
    return any(mark in name for mark in "*?[") or not _DATA_FILE.search(name)


def check_places(places: Mapping[str, str]) -> None:
    """Raise ConfigError for every value that is an address."""
    problems = [
        text for key, value in places.items() for check in (unread_scheme, no_path) for text in check(key, value)
    ]
    if problems:
        raise ConfigError(problems)


def texts_under(config: Any, key: str) -> Iterator[str]:
    """The texts that a config has under a dotted key; none where its section is not there."""
    section, _, name = key.partition(".")
    found = getattr(config, section)
    value = None if found is None else getattr(found, name)
    for each in (value,) if isinstance(value, str) else (value or ()):
        path = each.get("path") if isinstance(each, dict) else each
        yield from (path,) if isinstance(path, str) else ()
