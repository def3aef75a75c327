"""Shapes of the weights of a model, from the heads of its safetensors files: no weight is read, and no torch.

Comes in: a file, or the folder of a model. Goes out: tensor name -> shape.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from raydpo.schema.json_text import parse_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
UNREADABLE = (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError, MemoryError, OverflowError)
"""What `shapes_in` raises for a file that is not there or damaged."""
_MOST_BYTES = 10**8
"""Of a head: safetensors itself allows no more."""


def shapes_in(path: Path) -> dict[str, list[int]]:
    """Shape of each tensor of a safetensors file. Raises one of `UNREADABLE`."""
    return {name: entry["shape"] for name, entry in head_of(path)[0].items()}


def head_of(path: Path) -> tuple[dict[str, Any], int]:
    """(tensor name -> its dtype, shape and data_offsets; where the data begins) of a safetensors file. Raises as above."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > _MOST_BYTES:
            raise ValueError(f"its head would have {length:,} bytes")
        head = parse_json(file.read(length))
    return {name: entry for name, entry in head.items() if name != "__metadata__"}, 8 + length


def shapes_of_model(folder: Path) -> dict[str, list[int]] | None:
    """Shape of each tensor of the model in `folder`; None where it has no safetensors (yet), or damaged ones."""
    try:
        found: dict[str, list[int]] = {}
        for path in files_of(folder):
            found |= shapes_in(path)
    except UNREADABLE:
        return None
    return found


def files_of(folder: Path) -> list[Path]:
    """The safetensors files of the model in `folder`, as transformers chooses them. Raises one of `UNREADABLE`."""
    single = folder / SINGLE
    if single.is_file():
        return [single]
    return [folder / name for name in sorted(set(parse_json((folder / INDEX).read_text())["weight_map"].values()))]
