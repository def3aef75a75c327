"""Ranges of tensors out of safetensors files, read without the rest of the tensor or of the file.

Comes in: the folder of a model. Goes out: where its tensors lie, and of any of them the elements that are asked for.
Decision: files are read, not mapped, so that every byte that a rank asks for is counted and none stays in its memory; values
that are not finite are found while they pass. Price: a look at each block that was read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from raydpo.errors import ConfigError
from raydpo.models.weight_shapes import UNREADABLE, files_of, head_of

DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""What a safetensors file calls the dtypes of weights."""
BLOCK_ELEMENTS = 1 << 22
"""Elements that are read, cast and looked at in one go."""


class Readable(Protocol):
    """Elements that lie in files. name: of the first tensor there. shape: of the weight that they make."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def num_elements(self) -> int: ...

    def read(self, reader: SliceReader, first: int, out: Tensor) -> None:
        """Elements from `first` on of the flattened weight into `out`, as `SliceReader.read`."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a file. name: there. start: its first byte. dtype, shape: as it is stored."""

    file: Path
    name: str
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """Of the whole tensor."""
        return math.prod(self.shape)

    def read(self, reader: SliceReader, first: int, out: Tensor) -> None:
        """As `SliceReader.read`."""
        reader.read(self, first, out)


def places_in(folder: Path) -> dict[str, StoredTensor]:
    """Tensor name -> place of the whole model in `folder`. Raises ValueError where it has no safetensors of plain floats."""
    try:
        return {place.name: place for file in files_of(folder) for place in _places(file)}
    except UNREADABLE as error:
        raise ValueError(f"{folder} holds no safetensors that can be read in parts ({error})") from error


def refuse_not_finite(model: nn.Module) -> None:
    """Raise ConfigError when a weight of `model` is NaN or infinite."""
    names = [name for name, weight in model.named_parameters() if not _is_finite(weight.detach())]
    if names:
        raise not_finite(names)


def not_finite(names: Sequence[str]) -> ConfigError:
    """What a person is told of weights with NaN or infinity."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ConfigError(
        f"model.path: {', '.join(names[:3])}{more} hold NaN or infinity: log-probs that are not finite would follow. Nothing "
        "was computed. Use an earlier checkpoint, or, where they overflow in bfloat16, model.dtype: float32."
    )


def _is_finite(weight: Tensor) -> bool:
    flat = weight.reshape(-1)
    return all(bool(torch.isfinite(block).all()) for block in torch.split(flat, BLOCK_ELEMENTS))


def _places(file: Path) -> Iterator[StoredTensor]:
    head, start = head_of(file)
    for name, entry in head.items():
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{name} is in {entry['dtype']}")
        yield StoredTensor(file, name, start + entry["data_offsets"][0], DTYPES[entry["dtype"]], tuple(entry["shape"]))


class SliceReader:
    """Reads ranges of places. bytes_read: of all so far. not_finite: names of tensors with NaN or infinity in what was read.
    looks: whether they are looked for, which takes longer than reading."""

    def __init__(self) -> None:
        self.bytes_read = 0
        self.not_finite: list[str] = []
        self.looks = True
        self._opened: tuple[Path, Any] | None = None

    def read(self, place: StoredTensor, first: int, out: Tensor) -> None:
        """Elements from `first` on of the flattened tensor into `out`, a contiguous [N] of any dtype on the CPU.

        Raises ConfigError when the file ends before.
        """
        file, size = self._file(place.file), place.dtype.itemsize
        is_finite = True
        for at in range(0, len(out), BLOCK_ELEMENTS):
            target = out[at : at + BLOCK_ELEMENTS]
            block = target if target.dtype == place.dtype else torch.empty(len(target), dtype=place.dtype)
            file.seek(place.start + (first + at) * size)
            wanted = len(block) * size
            if wanted and file.readinto(block.view(torch.uint8).numpy()) != wanted:
                raise ConfigError(
                    f"{place.file} ends before {place.name} does. Nothing was trained. Copy the model there again."
                )
            self.bytes_read += wanted
            if block is not target:
                target.copy_(block)
            is_finite = is_finite and (not self.looks or bool(torch.isfinite(target).all()))
        if not is_finite and place.name not in self.not_finite:
            self.not_finite.append(place.name)

    def whole(self, place: Readable, dtype: torch.dtype) -> Tensor:
        """All of a weight in `dtype`."""
        found = torch.empty(place.num_elements, dtype=dtype)
        place.read(self, 0, found)
        return found.view(place.shape)

    def close(self) -> None:
        """Close the file that is open."""
        if self._opened is not None:
            self._opened[1].close()
            self._opened = None

    def _file(self, path: Path) -> Any:
        if self._opened is None or self._opened[0] != path:
            self.close()
            self._opened = (path, path.open("rb", buffering=0))
        return self._opened[1]
