"""Safetensors files of a bounded size, written while their tensors come one by one, in any order.

Comes in: name, shape and dtype of every tensor, and then each tensor once. Goes out: `model.safetensors`, or shards of it and
their index, as transformers names them. Decision: the head of a file stands before its data and follows from shapes alone, so
each tensor goes to its place as it comes and none is kept: the peak is one tensor, whatever the size of a file. The bytes
are those that safetensors itself would write. Price: its layout is repeated here, and a test compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from raydpo.models.weight_shapes import INDEX, SINGLE

SHARD_BYTES = 5 * 10**9
"""Of tensors in a file, at most; a larger tensor has a file of its own."""
DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What a safetensors file calls dtypes."""
_ORDER = ("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL")
"""In which safetensors lays dtypes out."""


class ShardFiles:
    """Files in `folder` for `planned` tensors (of any device, meta included), in shards of at most `max_bytes`."""

    def __init__(self, folder: Path, planned: Mapping[str, Tensor], max_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._planned = folder, planned
        self._starts: dict[str, int] = {}
        self._files = {name: file for file, names in _named(planned, max_bytes) for name in names}
        for file in dict.fromkeys(self._files.values()):
            names = [name for name, place in self._files.items() if place == file]
            self._starts |= begin(folder / file, {name: planned[name] for name in names})
        self._lacking = set(planned)

    def write(self, name: str, tensor: Tensor) -> None:
        """Put a tensor into its place. Raises ValueError where it is not as it was planned, OSError for a full disk."""
        planned = self._planned[name]
        if (tensor.shape, tensor.dtype) != (planned.shape, planned.dtype):
            raise ValueError(
                f"{name} is {tensor.dtype} {list(tensor.shape)}, not {planned.dtype} {list(planned.shape)}"
            )
        put(self._folder / self._files[name], self._starts[name], tensor)
        self._lacking.discard(name)

    def finish(self) -> list[Path]:
        """The files, with their index where there are several. Raises ValueError when a tensor has not come."""
        if self._lacking:
            raise ValueError(f"{len(self._lacking)} tensors were not written: {', '.join(sorted(self._lacking)[:3])}")
        files = [self._folder / file for file in dict.fromkeys(self._files.values())]
        if len(files) < 2:
            return files
        total = sum(tensor.nbytes for tensor in self._planned.values())
        index = {"metadata": {"total_size": total}, "weight_map": self._files}
        (self._folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        return [*files, self._folder / INDEX]


def begin(file: Path, planned: Mapping[str, Tensor]) -> dict[str, int]:
    """Write the head of a new file: name -> byte at which the data of the tensor begins."""
    order = sorted(planned, key=lambda name: (_ORDER.index(DTYPE_NAMES[planned[name].dtype]), name))
    head: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts, at = {}, 0
    for name in order:
        tensor = planned[name]
        starts[name], end = at, at + tensor.nbytes
        head[name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        opened.truncate(8 + len(text) + at)
    return {name: 8 + len(text) + start for name, start in starts.items()}


def put(file: Path, start: int, tensor: Tensor) -> None:
    """Write the data of a tensor from byte `start` on."""
    data = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()
    with file.open("r+b") as opened:
        opened.seek(start)
        opened.write(data.data)


def _named(planned: Mapping[str, Tensor], max_bytes: int) -> Iterator[tuple[str, Sequence[str]]]:
    """(file, names of its tensors)."""
    shards = _split(planned, max_bytes)
    stem, _, ending = SINGLE.rpartition(".")
    for number, names in enumerate(shards, 1):
        yield SINGLE if len(shards) == 1 else f"{stem}-{number:05d}-of-{len(shards):05d}.{ending}", names


def _split(planned: Mapping[str, Tensor], max_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in planned.items():
        if shards[-1] and size + tensor.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards
