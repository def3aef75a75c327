"""All checks of `raydpo doctor`, one after the other.

Comes in: the folders that a run writes to. Goes out: findings. Decision: nothing is imported that a check can do without (no
torch, no Ray), nothing is started, and a check that breaks is a finding, not the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from raydpo.artifacts.mirror_path import url_of
from raydpo.doctor import (
    clock,
    devices,
    folder_abilities,
    hub_access,
    machine_limits,
    ray_exposure,
    store_abilities,
    versions,
)
from raydpo.doctor.finding import Finding

Check = Callable[[], Iterable[Finding]]


def examine_all(folders: Mapping[str, Path]) -> list[Finding]:
    """Findings of every check. folders: config key -> folder, which need not exist, or the
    working copy of an object store, which is examined as well."""
    stores = {key: url for key, path in folders.items() if (url := url_of(path)) is not None}
    checks: list[tuple[str, Check]] = [
        ("versions", versions.check),
        ("Ray", ray_exposure.check),
        *((key, partial(folder_abilities.check, key, path)) for key, path in folders.items()),
        *((key, partial(store_abilities.check, key, url)) for key, url in stores.items()),
        ("machine", machine_limits.check),
        ("clock", clock.check),
        ("GPUs", devices.check),
        ("hub", hub_access.check),
    ]
    return [finding for name, check in checks for finding in _findings(name, check)]


def _findings(name: str, check: Check) -> list[Finding]:
    try:
        return list(check())
    except Exception as error:  # noqa: BLE001 - a machine may be stranger than a check foresees
        return [Finding(name, "warn", f"could not be looked at ({type(error).__name__})")]
