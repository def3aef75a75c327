"""When, from which commit and on what a result was made. Needs nothing but Python and the installed torch."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path


def made_now() -> dict[str, str]:
    """When, from which commit (empty outside a repository) and on what an entry is made."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": _commit(),
        "hardware": f"{cores} CPU cores ({platform.machine()}), torch {version('torch')}",
    }


def _commit() -> str:
    """Short name of the commit; with + when the program differs from it."""
    name = _git("rev-parse", "--short=10", "HEAD")
    return name + ("+" if name and _git("status", "--porcelain", "--", "raydpo") else "")


def _git(*words: str) -> str:
    try:
        done = subprocess.run(
            ["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
