"""What a weight is made of that transformers computes out of tensors of the files: stacked experts, split or turned matrices.

Comes in: tensors on the meta device with the places of those in the files, and what is done to them. Goes out: of each result,
which elements of which tensors it has, so that any range of it is read without the rest. Decision: what reaches torch is
watched, not the tables of transformers, so that every conversion that only moves elements is known, and one that computes is
not. Price: a matrix that is transposed is read in blocks that are whole, an expert at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from raydpo.models.slices import Readable, SliceReader

_JOINS = (torch.ops.aten.cat.default, torch.ops.aten.stack.default)


@dataclass(frozen=True)
class Joined:
    """Tensors one after the other in dimension `dim`, as torch.cat and torch.stack put them.

    parts: shape of each (as it was joined) and where it is read from. shape: of the result.
    """

    parts: tuple[tuple[tuple[int, ...], Readable], ...]
    dim: int
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """Of its first tensor in the files."""
        return self.parts[0][1].name

    @property
    def num_elements(self) -> int:
        """Of the result."""
        return math.prod(self.shape)

    def read(self, reader: SliceReader, first: int, out: Tensor) -> None:
        """As `SliceReader.read`."""
        widths = [math.prod(shape[self.dim :]) for shape, _ in self.parts]
        at = 0
        while at < len(out):
            row, within = divmod(first + at, sum(widths))
            for width, (_, part) in zip(widths, self.parts, strict=True):
                count = min(width - within, len(out) - at)
                if count > 0:
                    part.read(reader, row * width + within, out[at : at + count])
                    at += count
                within = max(0, within - width)


@dataclass(frozen=True)
class View:
    """Elements of `of` in the order that a shape, strides and an offset give, as torch's own views."""

    of: Readable
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    @property
    def name(self) -> str:
        """Of its first tensor in the files."""
        return self.of.name

    @property
    def num_elements(self) -> int:
        """Of the view."""
        return math.prod(self.shape)

    def read(self, reader: SliceReader, first: int, out: Tensor) -> None:
        """As `SliceReader.read`. Rows that lie together are read alone, turned ones as blocks."""
        dims = [(size, stride) for size, stride in zip(self.shape, self.strides, strict=True) if size != 1]
        inner = next(at for at in range(len(dims) + 1) if _are_rows(dims[at:]))
        is_turned = inner == len(dims) > 0
        if is_turned:
            inner = next((at for at in reversed(range(len(dims))) if _is_dense(dims[at:])), 0)
        outside, inside = dims[:inner], dims[inner:]
        length, at = math.prod(size for size, _ in inside), 0
        while at < len(out):
            number, within = divmod(first + at, length)
            count = min(length - within, len(out) - at)
            start, target = self.offset + _address(number, outside), out[at : at + count]
            if is_turned:
                target.copy_(self._block(reader, start, inside, out.dtype)[within : within + count])
            else:
                self.of.read(reader, start + within, target)
            at += count

    def _block(self, reader: SliceReader, start: int, dims: Sequence[tuple[int, int]], dtype: torch.dtype) -> Tensor:
        block = torch.empty(_span(dims), dtype=dtype)
        self.of.read(reader, start, block)
        return block.as_strided([size for size, _ in dims], [stride for _, stride in dims]).reshape(-1)


class Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is open: what tensors on the meta device are made of. remembered: the places of those in the files."""

    def __init__(self, remembered: Mapping[int, tuple[Tensor, Readable]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._remembered, self._made = remembered, dict[int, tuple[Tensor, Readable]]()
        self._changed: dict[int, Tensor] = {}

    def recipe(self, tensor: Tensor) -> Readable | None:
        """Where the elements of `tensor` are read from; None: from nowhere that is known."""
        key = tensor.untyped_storage()._cdata
        known = self._remembered.get(key) or self._made.get(key)
        if known is None or key in self._changed:
            return None
        of = known[1]
        if tensor.is_contiguous() and tensor.storage_offset() == 0 and tuple(tensor.shape) == of.shape:
            return of
        return View(of, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        result = func(*args, **options)
        if func in _JOINS:
            self._remember(result, self._joined(result, args[0], *args[1:2], **options))
        elif func is torch.ops.aten.clone.default:
            self._remember(result, self._known(args[0]))
        elif func._schema.is_mutable and isinstance(args[0], Tensor) and args[0].is_meta:
            self._changed[args[0].untyped_storage()._cdata] = args[0]
        return result

    def _remember(self, result: Tensor, of: Readable | None) -> None:
        if of is not None and result.is_contiguous():
            self._made[result.untyped_storage()._cdata] = (result, of)

    def _joined(self, result: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> Joined | None:
        found = [self._known(tensor) for tensor in tensors]
        if any(of is None for of in found):
            return None
        parts = tuple((tuple(tensor.shape), of) for tensor, of in zip(tensors, found, strict=True) if of is not None)
        return Joined(parts, dim % result.ndim, tuple(result.shape))

    def _known(self, tensor: Tensor) -> Readable | None:
        return self.recipe(tensor) if tensor.is_meta else None


def _are_rows(dims: Sequence[tuple[int, int]]) -> bool:
    """Whether elements of these (size, stride) lie one after the other."""
    expected = 1
    for size, stride in reversed(dims):
        if stride != expected:
            return False
        expected *= size
    return True


def _is_dense(dims: Sequence[tuple[int, int]]) -> bool:
    return _span(dims) == math.prod(size for size, _ in dims)


def _span(dims: Sequence[tuple[int, int]]) -> int:
    return 1 + sum((size - 1) * stride for size, stride in dims)


def _address(number: int, dims: Sequence[tuple[int, int]]) -> int:
    """Of the element `number` in the order of `dims`."""
    found = 0
    for size, stride in reversed(dims):
        number, at = divmod(number, size)
        found += at * stride
    return found
