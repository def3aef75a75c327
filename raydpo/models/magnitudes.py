"""DoRA's magnitudes where no rank ever has the whole matrix: norms of rows, each measured by the rank that reads its beginning.

Comes in: a module with an adapter on weights that are read in parts, and those parts. Goes out: magnitudes as PEFT begins with
them. Decision: PEFT's own function measures rows, of which only the last one of a part is read to its end, so that values are
the same to the last bit. Price: what is not a plain linear layer (Conv1D of GPT-2, embeddings) is read whole by every rank, one
at a time.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from raydpo.models.slices import Readable, SliceReader


class Magnitudes:
    """Those of all adapters in a module, to be measured anew."""

    def __init__(self, module: nn.Module) -> None:
        self._rows: dict[int, list[Any]] = defaultdict(list)
        self._whole: dict[int, list[Any]] = defaultdict(list)
        for layer in module.modules():
            for dora in (getattr(layer, "lora_magnitude_vector", None) or {}).values():
                base: Any = layer.get_base_layer()  # type: ignore[operator]
                (self._rows if type(base) is nn.Linear else self._whole)[id(base.weight)].append(dora)

    def measure(self, weight: Tensor, key: int, place: Readable, first: int, count: int, reader: SliceReader) -> None:
        """Of the weight with the id `key`, of which `count` elements from `first` on are in `weight`, the rest unwritten."""
        if key in self._whole:
            _measure(self._whole[key], reader.whole(place, weight.dtype), slice(None))
        if key not in self._rows:
            return
        size = weight.shape[1]
        rows = slice(-(-first // size), -(-(first + count) // size))
        if rows.start < rows.stop:
            end = first + count
            place.read(reader, end, weight.view(-1)[end : rows.stop * size])
        for dora in self._rows[key]:
            dora.weight.data.zero_()
        _measure(self._rows[key], weight[rows], rows)

    def gather(self, device: torch.device) -> None:
        """Give each rank what all of them measured. Collective. device: of this rank."""
        found = [dora.weight.data for key in self._rows for dora in self._rows[key]]
        if not found:
            return
        every = torch.cat([each.float() for each in found]).to(device)
        torch.distributed.all_reduce(every)  # zeros but on one rank
        for each, whole in zip(found, torch.split(every.cpu(), [len(each) for each in found]), strict=True):
            each.copy_(whole)


@torch.no_grad()
def _measure(layers: list[Any], weight: Tensor, rows: slice) -> None:
    if weight.numel():
        for dora in layers:
            dora.weight.data[rows] = dora.get_weight_norm(weight, torch.zeros((), dtype=weight.dtype), 1.0)
