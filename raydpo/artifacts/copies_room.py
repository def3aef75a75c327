"""A bound for the working copies of run directories that a machine keeps: those that were used longest ago go first.

Comes in: RAYDPO_STORE_GB, and the copy that is about to be used. Goes out: folders removed. Decision: a copy that another
driver of this machine holds stays, as its lock says, and what is removed is fetched again where it is asked for; nothing but
working copies is ever removed, never anything in a store. Copies of caches and inputs are not counted.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from raydpo.artifacts.lock import RunLock
from raydpo.artifacts.mirror_path import copies_root
from raydpo.artifacts.working_copy import STATE
from raydpo.errors import ConfigError, RunInUseError

BOUND_VARIABLE = "RAYDPO_STORE_GB"
"""Environment variable: gigabytes that working copies may take together; without it there is no bound."""


def make_room(keep: Path) -> list[Path]:
    """Remove working copies, but for `keep`, until the others fit into the bound; which ones."""
    bound_bytes = _bound_bytes()
    if math.isinf(bound_bytes):
        return []
    copies = sorted(_copies(keep), key=lambda folder: (folder / STATE).stat().st_mtime_ns)
    sizes = {folder: _size(folder) for folder in copies}
    removed = list[Path]()
    for folder in copies:
        if sum(sizes.values()) <= bound_bytes:
            break
        with suppress(RunInUseError), RunLock(folder):
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
        del sizes[folder]
    return removed


def _bound_bytes() -> float:
    given = os.environ.get(BOUND_VARIABLE)
    try:
        bound = math.inf if not given else float(given)
    except ValueError:
        bound = math.nan
    if not bound >= 0:
        raise ConfigError(
            f"{BOUND_VARIABLE}={given!r} is no number of gigabytes; nothing was started. Set it to one, such as 500, or leave "
            "it out."
        )
    return bound * 1e9


def _copies(keep: Path) -> Iterator[Path]:
    for state in copies_root().rglob(STATE):
        if state.parent != keep:
            yield state.parent


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
