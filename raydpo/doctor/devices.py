"""The GPUs of this machine and what drives them, without importing torch.

Comes in: /dev, nvidia-smi, and the version text of the installed torch, whose end names its build.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from raydpo.doctor.finding import Finding
from raydpo.doctor.versions import installed

_QUERY = ("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
_TIMEOUT_S = 20.0


def check() -> Iterator[Finding]:
    """One finding a GPU, one where there is none, one for a torch that cannot use them."""
    nodes = sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))
    program = shutil.which("nvidia-smi")
    if program is None:
        yield _without_program(nodes)
        return
    yield from gpus(program, nodes)


def gpus(program: str, nodes: list[str]) -> Iterator[Finding]:
    """What nvidia-smi says."""
    try:
        asked = subprocess.run([program, *_QUERY], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Finding(
            "GPUs", "fail", f"nvidia-smi does not answer ({type(error).__name__}): the driver hangs or is broken"
        )
        return
    lines = [line.strip() for line in asked.stdout.splitlines() if line.strip()]
    if asked.returncode or not lines:
        yield Finding(
            "GPUs",
            "fail" if nodes else "ok",
            f"nvidia-smi finds none (exit code {asked.returncode}); {len(nodes)} in /dev",
        )
        return
    for number, line in enumerate(lines):
        yield Finding(f"GPU {number}", "ok", line)
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        yield Finding(
            "CUDA_VISIBLE_DEVICES", "warn", f"is {visible!r}: a run uses these alone, of {len(lines)} that are there"
        )
    if (torch := installed("torch")) is not None and torch.endswith("+cpu"):
        yield Finding("GPUs", "fail", f"torch {torch} is built for CPUs and cannot use them: install torch for CUDA")


def _without_program(nodes: list[str]) -> Finding:
    if nodes:
        return Finding("GPUs", "warn", f"{len(nodes)} in /dev, and there is no nvidia-smi to ask for their driver")
    return Finding("GPUs", "ok", "none; a run uses CPUs")
