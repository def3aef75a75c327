"""Weights for the child processes of an engine: in one file that all of them map, for the time of a push.

Comes in: a whole set of weights. Goes out: the path of a safetensors file. Decision: in shared memory where they fit twice, so
that nothing is written to a disk, else in the folder for temporary files. Price: a copy of the model there meanwhile.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SHARED_MEMORY = Path("/dev/shm")


@contextmanager
def handed_over(weights: Mapping[str, Any]) -> Iterator[Path]:
    """A file with `weights` (name -> CPU tensor), there until the context ends."""
    from safetensors.torch import save_file

    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    with tempfile.TemporaryDirectory(prefix="raydpo-weights-", dir=_place(num_bytes)) as folder:
        path = Path(folder) / "weights.safetensors"
        save_file({name: tensor.detach().contiguous() for name, tensor in weights.items()}, path)
        yield path


def in_file(path: str) -> Iterator[tuple[str, Any]]:
    """Name and tensor of each weight of the file, one at a time."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            yield name, file.get_tensor(name)


def _place(num_bytes: int) -> Path | None:
    if SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > 2 * num_bytes:
        return SHARED_MEMORY
    return None
