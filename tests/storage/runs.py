"""Runs on the toy of tests/pipelines whose run directory is an address."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raydpo.artifacts.object_store import ObjectStore
from raydpo.config import Config
from tests.pipelines.toy import Toy, config


def remote_config(toy: Toy, url: str, changes: Mapping[str, Any] | None = None) -> Config:
    """`toy.config` with its run directory at `url`."""
    return config(toy, Path("unused"), {"run.dir": url, **(changes or {})})


def log_of(url: str) -> list[dict[str, Any]]:
    """Entries of the log of commits, in order."""
    store = ObjectStore(url)
    keys = sorted(key for key, _, _ in store.listed("log"))
    return [json.loads(store.get(key) or b"") for key in keys]


def named(entries: list[dict[str, Any]]) -> list[str]:
    """What each entry made count, or its kind."""
    return [entry.get("what", entry["kind"]) for entry in entries]
