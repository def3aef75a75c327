"""Tensors as bytes of a file and back, without a copy but the one that writes.

Comes in: tensors, or mapped memory and what lies where. Goes out: pieces to write, or views. Decision: a device's memory is
copied piece by piece, so that main memory never holds a second model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from raydpo.schema.shared_weights import TensorPlace

ALIGNED_BYTES = 64
PIECE_BYTES = 64 * 2**20


def dtype_name(dtype: torch.dtype) -> str:
    """ "bfloat16" of torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def num_bytes_of(place: TensorPlace) -> int:
    """Of the whole tensor."""
    dtype: torch.dtype = getattr(torch, place.dtype)
    return math.prod(place.shape) * dtype.itemsize


def after(offset_bytes: int) -> int:
    """The first offset from there on at which a tensor may begin."""
    return -(-offset_bytes // ALIGNED_BYTES) * ALIGNED_BYTES


def laid_out(
    tensors: Iterable[tuple[str, torch.dtype, tuple[int, ...]]], offset_bytes: int
) -> tuple[list[TensorPlace], int]:
    """A place for each (name, dtype, shape), one after the other from `offset_bytes` on, and where they end."""
    places = []
    for name, dtype, shape in tensors:
        place = TensorPlace(name, dtype_name(dtype), shape, after(offset_bytes))
        places.append(place)
        offset_bytes = place.offset_bytes + num_bytes_of(place)
    return places, offset_bytes


def pieces(flat: Tensor) -> Iterator[tuple[int, memoryview]]:
    """(bytes from its start, those of a piece) of a tensor [N] on any device."""
    length = PIECE_BYTES // flat.element_size()
    for start in range(0, flat.numel(), length):
        piece = flat[start : start + length].detach().to("cpu").contiguous()
        yield start * flat.element_size(), memoryview(piece.view(torch.uint8).numpy())  # type: ignore[arg-type]


def views(memory: Any, places: Iterable[TensorPlace]) -> dict[str, Tensor]:
    """Name -> tensor in `memory`, a writable buffer that lives as long as they do."""
    data = torch.frombuffer(memory, dtype=torch.uint8)
    return {place.name: _view(data, place) for place in places}


def _view(data: Tensor, place: TensorPlace) -> Tensor:
    raw = data[place.offset_bytes : place.offset_bytes + num_bytes_of(place)]
    return raw.view(getattr(torch, place.dtype)).view(place.shape)


def places_in(memory: Tensor, tensors: Iterable[tuple[str, Tensor]]) -> list[TensorPlace] | None:
    """Where tensors lie in `memory` ([bytes] uint8); None where one does not, or not row by row."""
    found, first = [], memory.data_ptr()
    for name, tensor in tensors:
        offset_bytes = tensor.data_ptr() - first
        is_inside = 0 <= offset_bytes <= memory.numel() - tensor.nbytes
        if not (is_inside and tensor.is_contiguous()):
            return None
        found.append(TensorPlace(name, dtype_name(tensor.dtype), tuple(tensor.shape), offset_bytes))
    return found
