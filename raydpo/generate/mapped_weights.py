"""Weights that lie in a file of this node, as tensors of this process: what a push wrote, or what an engine hands its children.

Comes in: a description. Goes out: name -> tensor in mapped memory, or nothing where this node has no such file. Decision: the
memory is mapped copy-on-write and nothing is copied here; whoever takes the weights copies once, from there into its model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from raydpo.artifacts import shared_files
from raydpo.artifacts.shared_files import HEADER_BYTES
from raydpo.models.tensor_bytes import laid_out, pieces, places_in, views
from raydpo.schema.shared_weights import SharedWeights


class MappedWeights(dict[str, Any]):
    """Name -> CPU tensor in the mapped memory of a file, which is there for as long as any of them is held."""

    def __init__(self, shared: SharedWeights, memory: Any) -> None:
        super().__init__(views(memory, shared.tensors))
        self.shared, self._memory = shared, torch.frombuffer(memory, dtype=torch.uint8)

    def again(self, weights: Mapping[str, Any]) -> SharedWeights | None:
        """The same file, described under the names of `weights`; None where one of them lies elsewhere."""
        places = places_in(self._memory, weights.items())
        return None if places is None else replace(self.shared, tensors=tuple(places))


def mapped(shared: SharedWeights) -> MappedWeights | None:
    """What is in the file; None where this node does not have it."""
    file = shared_files.opened(Path(shared.path), shared.key)
    if file is None:
        return None
    try:
        memory = file.mapped()
    finally:
        file.close()
    return MappedWeights(shared, memory) if len(memory) >= shared.num_bytes else None


@contextmanager
def handed_over(weights: Mapping[str, Any], source: MappedWeights | None = None) -> Iterator[SharedWeights]:
    """`weights` (name -> CPU tensor) as a file that other processes map, there until the context ends.

    source: what they were made of; where all of them still lie in its file, under whatever names, it is that one. Raises
    StorageError where there is no room.
    """
    if source is not None and (found := source.again(weights)) is not None:
        yield found
        return
    shared_files.sweep()
    tensors = ((name, tensor.dtype, tuple(tensor.shape)) for name, tensor in weights.items())
    places, num_bytes = laid_out(tensors, HEADER_BYTES)
    file = shared_files.create(num_bytes)
    try:
        for place in places:
            for start, data in pieces(weights[place.name].reshape(-1)):
                file.write(place.offset_bytes + start, data)
        yield SharedWeights(str(file.path), file.key, tuple(places), num_bytes)
    finally:
        shared_files.remove(file.path, file.key)
        file.release()
