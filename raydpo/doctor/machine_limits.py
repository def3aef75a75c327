"""What this process may use of the machine: CPUs, memory, shared memory, and who may read what it writes.

Comes in: /proc, control groups of either version, and the umask.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from raydpo.doctor.finding import Finding

CGROUPS = Path("/sys/fs/cgroup")
SHARED_MEMORY = Path("/dev/shm")
_GIB = 2**30
_LEAST_MEMORY_BYTES = 2 * _GIB
_LEAST_SHARED_BYTES = 256 * 2**20
_UNLIMITED_BYTES = 2**60


def check() -> Iterator[Finding]:
    """CPUs, memory, /dev/shm, umask."""
    yield cpus(len(os.sched_getaffinity(0)), cpu_quota(CGROUPS))
    yield memory(Path("/proc/meminfo"), memory_limit(CGROUPS))
    yield shared_memory(SHARED_MEMORY)
    mask = os.umask(0o077)
    os.umask(mask)
    yield umask(mask)


def cpus(num_there: int, quota: float | None) -> Finding:
    """Whether as many may run as there seem to be."""
    if quota is not None and quota < num_there:
        text = f"{num_there} are seen, and the control group gives the time of {quota:g}"
        remedy = f"set RAYDPO_LOCAL_CPUS={max(1, int(quota))}, or threads will wait for each other"
        return Finding("CPUs", "warn", f"{text}: {remedy}")
    return Finding("CPUs", "ok", f"{num_there}" + (f", of a quota of {quota:g}" if quota is not None else ""))


def cpu_quota(root: Path) -> float | None:
    """CPUs that the control group of this process gives; None for no limit. The tightest of the group and those around it."""
    found = []
    for folder in _groups(root, "cpu"):
        words = (_read(folder / "cpu.max") or "").split()
        if not words:
            words = [_read(folder / "cpu.cfs_quota_us") or "-1", _read(folder / "cpu.cfs_period_us") or "100000"]
        if len(words) == 2 and words[0].isdecimal() and int(words[1]) > 0:
            found.append(int(words[0]) / int(words[1]))
    return min(found, default=None)


def memory_limit(root: Path) -> int | None:
    """Bytes that the control group of this process may have; None for no limit."""
    found = []
    for folder in _groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _read(folder / name) or ""
            if text.isdecimal() and int(text) < _UNLIMITED_BYTES:
                found.append(int(text))
    return min(found, default=None)


def memory(meminfo: Path, limit_bytes: int | None) -> Finding:
    """What is there and free."""
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    total, free = (int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    limit = (
        ""
        if limit_bytes is None or limit_bytes >= total
        else f", limited to {limit_bytes / _GIB:.1f} GiB by the control group"
    )
    text = f"{free / _GIB:.1f} GiB free of {total / _GIB:.1f}{limit}"
    if min(free, limit_bytes or free) < _LEAST_MEMORY_BYTES:
        return Finding(
            "memory", "warn", f"{text}: too little for more than a toy model; Ray alone takes about half a GiB"
        )
    return Finding("memory", "ok", text)


def shared_memory(folder: Path) -> Finding:
    """Room for what processes of one machine hand each other."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return Finding(str(folder), "warn", "is not there: Ray and data loaders use the disk instead, and are slower")
    text = f"{free / 2**20:,.0f} MiB free"
    if free < _LEAST_SHARED_BYTES:
        return Finding(str(folder), "warn", f"{text}; NCCL and Ray want more. In Docker: --shm-size=2g")
    return Finding(str(folder), "ok", text)


def umask(mask: int) -> Finding:
    """Who may read and write what a run leaves."""
    if not mask & 0o002:
        return Finding("umask", "warn", f"{mask:04o}: everybody may change what a run writes; set umask 022 or 027")
    return Finding("umask", "ok", f"{mask:04o}")


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the control group of this process and of those around it, of version 2 and of version 1."""
    for line in (_read(Path("/proc/self/cgroup")) or "").splitlines():
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        base = root / controller if names else root
        group = Path(path.lstrip("/"))
        yield from (base / part for part in (group, *group.parents))


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
