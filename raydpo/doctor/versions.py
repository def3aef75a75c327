"""Versions of what raydpo stands on: those with known holes, and those that differ from the tested stack.

Comes in: the metadata of installed packages. Nothing of them is imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import raydpo
from raydpo.doctor.finding import Finding

FLOORS = {
    "ray": ((2, 54), "CVE-2025-62593 and CVE-2026-27482: a web page can reach the dashboard of a Ray on this machine"),
    "torch": ((2, 10), "CVE-2026-24747: reading a checkpoint can run what is in it"),
}
"""Package -> (first version without the hole, what it is)."""
STACK = ("deepspeed", "transformers", "tokenizers", "peft", "safetensors", "pyarrow", "numpy", "datasets", "pydantic")
_SHOWN = 5


def check() -> Iterator[Finding]:
    """One finding for each package with a floor, one for the rest of the stack."""
    for name in FLOORS:
        yield floor(name, installed(name))
    yield against_lock(Path(raydpo.__file__).parents[1] / "constraints.txt")


def installed(name: str) -> str | None:
    """The version that is there."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def floor(name: str, found: str | None) -> Finding:
    """Whether the version `found` of a package is one without known holes."""
    lowest, hole = FLOORS[name]
    asked = ".".join(map(str, lowest))
    if found is None:
        return Finding(name, "fail", f"not installed; {asked} or newer is needed: pip install '{name}>={asked}'")
    if release(found) < lowest:
        return Finding(name, "fail", f"{found} has known holes ({hole}): pip install '{name}>={asked}'")
    return Finding(name, "ok", f"{found}, not below {asked}")


def release(text: str) -> tuple[int, ...]:
    """The numbers at the beginning of a version; those of what is no version are below every other."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, found[0].split("."))) if found else ()


def against_lock(lock: Path) -> Finding:
    """Whether what is installed is what was tested together."""
    there = {name: found for name in (*FLOORS, *STACK) if (found := installed(name)) is not None}
    if not lock.is_file():
        shown = ", ".join(f"{name} {found}" for name, found in there.items())
        return Finding("stack", "ok", f"no constraints.txt next to the package to compare with: {shown}")
    pairs = (line.strip().split("==") for line in lock.read_text(encoding="utf-8").splitlines() if "==" in line)
    tested = {name: wanted for name, wanted in pairs if name in there}
    other = [
        f"{name} {there[name]} (tested: {wanted})"
        for name, wanted in tested.items()
        if _build_apart(there[name]) != wanted
    ]
    if not other:
        return Finding("stack", "ok", f"{len(tested)} packages in the versions of constraints.txt")
    more = f" and {len(other) - _SHOWN} more" if len(other) > _SHOWN else ""
    return Finding(
        "stack", "warn", f"not the tested versions: {', '.join(other[:_SHOWN])}{more}; `pip install -c constraints.txt`"
    )


def _build_apart(found: str) -> str:
    return found.partition("+")[0]
