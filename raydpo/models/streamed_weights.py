"""The weights of a model, written one by one under the names that transformers saves them under.

Comes in: a model, and its tensors in any order. Goes out: files of a bounded size. Decision: where transformers saves several
tensors out of one, or one out of several, it converts itself, each tensor alone; where its conversion needs more than one, the
tensors of a layer; else all of them. Which is enough is found out on tensors without data: names and shapes must be those of
the whole. Price: a layer in memory in the second case, a model in the third.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raydpo.models.shard_files import ShardFiles

_LAYER = re.compile(r"^(.*?\.\d+)\.")


class StreamedWeights:
    """Writes the tensors `planned` of `model` (on meta) into `folder` as they come, in files of at most `max_bytes`.

    most_bytes_held: of tensors that waited for others or were converted, at most, at any time.
    A disk that is full is told at `finish`: until then its caller goes on, with ranks that it must not leave.
    """

    def __init__(self, model: Any, planned: Mapping[str, Tensor], folder: Path, max_bytes: int) -> None:
        self.most_bytes_held = 0
        self._model, self._folder = model, folder
        self._held: dict[str, Tensor] = {}
        self._error: OSError | None = None
        ignored = getattr(model, "_keys_to_ignore_on_save", None) or ()
        kept = {name: tensor for name, tensor in planned.items() if name not in ignored}
        self._together, saved = _groups(model, kept)
        try:
            self._files: ShardFiles | None = ShardFiles(folder, saved, max_bytes)
        except OSError as error:
            self._files, self._error = None, error

    def add(self, name: str, tensor: Tensor) -> None:
        """Write a tensor, or hold it until those are there that it is saved with."""
        if self._files is None or self._error is not None or name not in self._together:
            return
        self._held[name] = tensor
        group = self._together[name]
        if not self._held.keys() >= set(group):
            self._count()
            return
        saved = _as_saved(self._model, {member: self._held[member] for member in group})
        self._count(saved)
        for member in group:
            del self._held[member]
        try:
            for place, value in saved.items():
                self._files.write(place, value)
        except OSError as error:
            self._error = error
            self._held.clear()

    def finish(self) -> list[Path]:
        """The files. Raises OSError of a full disk."""
        if self._error is not None or self._files is None:
            raise self._error or OSError("nothing was written")
        return self._files.finish()

    def move_into(self, folder: Path) -> None:
        """Put the files, which are on the same disk, into a model folder. Raises as `finish`."""
        for path in self.finish():
            path.replace(folder / path.name)
        self._folder.rmdir()

    def _count(self, saved: Mapping[str, Tensor] | None = None) -> None:
        tensors = [*self._held.values(), *(saved or {}).values()]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        self.most_bytes_held = max(self.most_bytes_held, sum(storages.values()))


def without_data(model: Any) -> dict[str, Tensor]:
    """The tensors of `model` that are saved, tied ones once, on meta. A weight that ZeRO-3 shards says its shape itself."""
    weights = ((name, getattr(weight, "ds_shape", weight.shape), weight) for name, weight in model.named_parameters())
    buffers = ((name, value.shape, value) for name, value in kept_buffers(model))
    return {
        name: torch.empty(tuple(shape), dtype=value.dtype, device="meta") for name, shape, value in (*weights, *buffers)
    }


def kept_buffers(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Buffers that are saved."""
    kept = model.state_dict().keys()
    return ((name, value) for name, value in model.named_buffers() if name in kept)


def _groups(model: Any, planned: Mapping[str, Tensor]) -> tuple[dict[str, list[str]], dict[str, Tensor]]:
    """(tensor -> those that it is converted with, the tensors that are saved, without data)."""
    whole = _as_saved(model, planned)
    groups: dict[str, list[str]] = {}
    for part_of in _PARTS:
        groups = {}
        for name in planned:
            groups.setdefault(part_of(name), []).append(name)
        if _is_enough(model, planned, groups.values(), whole):
            break
    return {name: group for group in groups.values() for name in group}, whole


def _layer_of(name: str) -> str:
    found = _LAYER.match(name)
    return found.group(1) if found else ""


_PARTS: tuple[Callable[[str], str], ...] = (str, _layer_of, lambda _: "")
"""Tensor -> what it is converted with: itself, its layer, everything."""


def _is_enough(
    model: Any, planned: Mapping[str, Tensor], groups: Iterable[list[str]], whole: Mapping[str, Tensor]
) -> bool:
    """Whether groups that are converted by themselves make the tensors that all of them make together."""
    found: dict[str, Tensor] = {}
    for group in groups:
        try:
            part = _as_saved(model, {name: planned[name] for name in group})
        except (RuntimeError, ValueError, KeyError, IndexError, TypeError):
            return False
        if found.keys() & part.keys():
            return False
        found |= part
    return {name: (tensor.shape, tensor.dtype) for name, tensor in found.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in whole.items()
    }


def _as_saved(model: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    from transformers.core_model_loading import revert_weight_conversion

    found: dict[str, Tensor] = revert_weight_conversion(model, dict(tensors))
    return found
