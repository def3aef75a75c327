"""Weight sync on one node: every rank writes its share of the weights into one file, which generators there map.

Comes in: the model that trains. Goes out: the description of the file, or why there is none. Decision: nothing is gathered:
under ZeRO-3 a rank writes the slices that it holds, else an equal stretch of every tensor, of a LoRA run of its adapter alone;
only matrices that have to travel merged are made whole, by rank 0. Price: the file is one more copy of what travels in the
node's memory for as long as the push lasts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raydpo.artifacts import shared_files
from raydpo.artifacts.shared_files import HEADER_BYTES, SharedFile
from raydpo.errors import StorageError
from raydpo.models.tensor_bytes import after, laid_out, num_bytes_of, pieces
from raydpo.schema.shared_weights import SharedWeights, TensorPlace
from raydpo.train.export import gathered
from raydpo.train.held_state import whole_shape
from raydpo.train.pushed_tensors import PushedTensor, adapted_here, adapter_tensors, pushed_tensors, travels_alone

_kept: list[SharedFile] = []
"""The file of the last push, whose lock says that the process that made it lives."""


def share(model: Any, stage: int, rank: int, num_ranks: int, start: Path | None = None) -> SharedWeights | str:
    """Write the weights of `model`, or what its adapter changes, into a file of this node. Collective.

    stage: of ZeRO. start: plain folder with the weights below the adapter, which alone is written then if nothing is packed.
    Returns the description, on every rank alike, or one sentence: why no file can be shared.
    """
    is_alone = start is not None and travels_alone(model)
    is_merged = hasattr(model, "peft_config") and not is_alone
    tensors = list(adapter_tensors(model) if is_alone else pushed_tensors(model))
    file, problem = _begun(_room(tensors), rank, num_ranks)
    places: list[TensorPlace] = []
    if file is not None:
        try:
            places = _written(file, tensors, stage, rank, num_ranks, is_merged=is_merged)
        except OSError as error:
            problem = f"{file.path} could not be written: {error.strerror}"
    problem = next(filter(None, _told(problem, num_ranks)), "")
    if file is None or problem:
        _dropped(file, rank)
        return problem
    path, key, num_bytes, places = _told((str(file.path), file.key, _end(places), places), num_ranks)[0]
    file.close()
    shared = SharedWeights(path, key, tuple(places), num_bytes, hasattr(model, "peft_config"))
    return replace(shared, adapted=adapted_here(model), start=str(start)) if is_alone else shared


def _begun(num_bytes: int, rank: int, num_ranks: int) -> tuple[SharedFile | None, str]:
    """The file, made by rank 0 and opened by the others; or why this rank has none. Collective."""
    file, problem = None, ""
    if rank == 0:
        _forget()
        shared_files.sweep()
        try:
            file = shared_files.create(num_bytes)
        except StorageError as error:
            problem = str(error)
        else:
            _kept.append(file)
    made = _told(None if file is None else (file.path, file.key), num_ranks)[0]
    if rank > 0 and made is not None and (file := shared_files.opened(*made, is_writer=True)) is None:
        problem = f"rank {rank} does not see {made[0]}: it is on another node than rank 0"
    everybody = _told(problem, num_ranks)
    if any(everybody):
        _dropped(file, rank)
        return None, next(filter(None, everybody))
    return file, ""


def _written(
    file: SharedFile, tensors: list[PushedTensor], stage: int, rank: int, num_ranks: int, *, is_merged: bool
) -> list[TensorPlace]:
    """Write this rank's share; where everything lies, on rank 0 at least. Collective."""
    if is_merged:
        return _adapted(file, tensors, stage, is_writer=rank == 0)
    known = ((each.name, each.source.dtype, whole_shape(each.source)) for each in tensors)
    places, _ = laid_out(known, HEADER_BYTES)
    for place, each in zip(places, tensors, strict=True):
        start, flat = _share_of(each.source, rank, num_ranks)
        _write(file, place.offset_bytes + start * flat.element_size(), flat)
    return places


def _adapted(file: SharedFile, tensors: list[PushedTensor], stage: int, *, is_writer: bool) -> list[TensorPlace]:
    """Of an adapter: matrices are merged and written by one rank. Under ZeRO-3 all take part in gathering."""
    places: list[TensorPlace] = []
    problem: OSError | None = None
    for each in tensors:
        with gathered(each.weights, stage):
            if not is_writer or problem is not None:
                continue
            value = each.merge()
            (place,), _ = laid_out([(each.name, value.dtype, tuple(value.shape))], _end(places))
            places.append(place)
            try:
                _write(file, place.offset_bytes, value.contiguous().view(-1))
            except OSError as error:
                problem = error  # the others are in a collective: go through all of them first
    if problem is not None:
        raise problem
    return places


def _share_of(weight: Any, rank: int, num_ranks: int) -> tuple[int, Tensor]:
    """(first element, elements) of the stretch of a weight that this rank writes."""
    part = getattr(weight, "ds_tensor", None)
    if part is not None:  # ZeRO-3: equal parts, the last of them padded or empty
        start = part.ds_numel * torch.distributed.get_rank(weight.ds_process_group)
        return start, part.detach().view(-1)[: max(0, weight.ds_numel - start)]
    flat = weight.detach().reshape(-1)
    start, stop = (flat.numel() * edge // num_ranks for edge in (rank, rank + 1))
    return start, flat[start:stop]


def _write(file: SharedFile, offset_bytes: int, flat: Tensor) -> None:
    for start, data in pieces(flat):
        file.write(offset_bytes + start, data)


def _room(tensors: Iterable[PushedTensor]) -> int:
    """Bytes of the file. Packed matrices of an adapter's base are counted as they are packed: a file may grow."""
    num_bytes = HEADER_BYTES
    for each in tensors:
        num_bytes = after(num_bytes) + each.source.element_size() * math.prod(whole_shape(each.source))
    return num_bytes


def _end(places: list[TensorPlace]) -> int:
    return places[-1].offset_bytes + num_bytes_of(places[-1]) if places else HEADER_BYTES


def _told(value: Any, num_ranks: int) -> list[Any]:
    """What each rank says. Collective."""
    if num_ranks == 1:
        return [value]
    said: list[Any] = [None] * num_ranks
    torch.distributed.all_gather_object(said, value)
    return said


def _dropped(file: SharedFile | None, rank: int) -> None:
    if rank == 0:
        _forget()
    elif file is not None:
        file.close()


def _forget() -> None:
    """Remove the file of the push before."""
    while _kept:
        file = _kept.pop()
        with suppress(OSError):
            shared_files.remove(file.path, file.key)
        file.release()
