"""The safetensors files of a model as a table of tensors that are read one by one, and how many bytes were.

Comes in: a model folder. Goes out: slices that read when they are asked for. Decision: files are mapped, so that on a CPU a
tensor in the dtype of its file takes no memory of the process; what is counted is the size of each tensor that was asked for,
whether it came from the disk or from the memory of the kernel.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from raydpo.errors import ConfigError
from raydpo.models.weight_shapes import UNREADABLE, files_of, head_of


class CountedSlice:
    """A tensor of a file: `[...]` reads it, and adds its bytes to those of `files`."""

    def __init__(self, inner: Any, files: WeightFiles) -> None:
        self._inner, self._files = inner, files

    def __getitem__(self, place: Any) -> Tensor:
        found: Tensor = self._inner[place]
        self._files.bytes_read += found.numel() * found.element_size()
        return found

    def get_dtype(self) -> str:
        return str(self._inner.get_dtype())

    def get_shape(self) -> list[int]:
        return list(self._inner.get_shape())


class WeightFiles:
    """Tensors of the safetensors files in a folder. Raises ConfigError where they cannot be read.

    bytes_read: of all tensors that were read so far, each time that they were.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.bytes_read = 0
        self._slices: dict[str, CountedSlice] = {}
        self._ranges: dict[str, tuple[Path, int, int]] = {}
        try:
            for path in files_of(folder):
                head, start = head_of(path)
                file: Any = safe_open(path, framework="pt")
                for name, entry in head.items():
                    first, end = entry["data_offsets"]
                    self._ranges[name] = (path, start + first, end - first)
                    self._slices[name] = CountedSlice(file.get_slice(name), self)
        except (*UNREADABLE, SafetensorError) as error:
            raise ConfigError(f"the weights in {folder} cannot be read: {error}. Nothing was loaded.") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._slices)

    def slices(self, names: Iterable[str]) -> dict[str, CountedSlice]:
        """Tensors that are read when they are indexed."""
        return {name: self._slices[name] for name in names}

    def num_bytes(self, names: Iterable[str]) -> int:
        """Of tensors, as they stand in the files."""
        return sum(self._ranges[name][2] for name in names)

    def read_ahead(self, names: Iterable[str]) -> None:
        """Let the kernel fetch tensors from the disk meanwhile; nothing waits for it and nothing is counted."""
        if not hasattr(os, "posix_fadvise"):
            return
        places = [self._ranges[name] for name in names]
        for path in {path for path, _, _ in places}:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                for _, start, size in (place for place in places if place[0] == path):
                    os.posix_fadvise(descriptor, start, size, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)
