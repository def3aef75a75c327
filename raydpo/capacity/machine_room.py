"""What a machine has room for: memory of its GPUs and main memory, without torch.

Comes in: nvidia-smi, /proc/meminfo and the control group; or what a person states. Goes out: bytes.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from raydpo.doctor.machine_limits import CGROUPS, memory_limit

USABLE_SHARE = 0.9
"""Of the memory of a device; the rest is the CUDA context, the buffers of NCCL and what the allocator cannot use."""
_QUERY = ("--query-gpu=memory.total", "--format=csv,noheader,nounits")
_TIMEOUT_S = 20.0
_MIB = 2**20


@dataclass(frozen=True)
class Room:
    """device_bytes: of one GPU, None where none is known. num_devices: of a machine. host_bytes: main memory of a machine."""

    device_bytes: int | None
    num_devices: int
    host_bytes: int

    @property
    def said(self) -> str:
        gpus = "no GPU" if self.device_bytes is None else f"{self.num_devices} GPUs of {self.device_bytes / 1e9:.0f} GB"
        return f"{gpus}, {self.host_bytes / 1e9:.0f} GB of main memory"


def room_here() -> Room:
    """Of this machine."""
    sizes = _gpus()
    return Room(min(sizes, default=None), len(sizes), _main_memory(Path("/proc/meminfo"), memory_limit(CGROUPS)))


def _gpus() -> list[int]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        asked = subprocess.run([program, *_QUERY], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    words = asked.stdout.split() if not asked.returncode else []
    return [int(word) * _MIB for word in words if word.isdecimal()]


def _main_memory(meminfo: Path, limit_bytes: int | None) -> int:
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    total = sum(int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "SwapTotal") if name in fields)
    return min(total, limit_bytes or total)
