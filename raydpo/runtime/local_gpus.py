"""The GPUs of this machine, and which part of each an actor of the local runtime holds."""

from __future__ import annotations

import os
import re
from pathlib import Path

from raydpo.errors import ResourceError

_EPSILON = 1e-6


class LocalGpus:
    """Shares of GPUs that are given out and come back."""

    def __init__(self) -> None:
        self._free = dict.fromkeys(_devices(), 1.0)

    @property
    def number(self) -> int:
        return len(self._free)

    def free(self) -> float:
        return sum(self._free.values())

    def take(self, gpus: float) -> tuple[str, ...]:
        """Devices for an actor: a part of one, or whole ones. Raises ResourceError when others hold them."""
        each, needed = (gpus, 1) if 0 < gpus < 1 else (1.0, int(gpus))
        found = [device for device, share in self._free.items() if share >= each - _EPSILON][:needed]
        if len(found) < needed:
            raise ResourceError(
                f"{gpus:g} GPUs were asked for, and {self.free():g} of the {self.number} of this machine are free now; the "
                "local runtime does not wait for others. Lower gpus_per_worker or num_workers of the roles that work at the "
                "same time, or use run.runtime: ray."
            )
        for device in found:
            self._free[device] -= each
        return tuple(found)

    def give_back(self, devices: tuple[str, ...], gpus: float) -> None:
        for device in devices:
            self._free[device] += min(gpus, 1.0)


def _devices() -> list[str]:
    """Indices or ids of the NVIDIA GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device for device in visible.split(",") if device and device != "-1"]
    found = (re.fullmatch(r"nvidia(\d+)", path.name) for path in Path("/dev").glob("nvidia*"))
    return sorted((match[1] for match in found if match), key=int)
