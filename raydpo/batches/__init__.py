"""Batches, what a dataloader makes elsewhere: order (seed and step -> examples), pack (token budget), collate (tensors).

Names are looked up when they are first used: the order of the examples is pure, and whoever asks for it needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raydpo.batches.micro_batches import MicroBatch as MicroBatch
    from raydpo.batches.micro_batches import collate as collate
    from raydpo.batches.micro_batches import collate_rows as collate_rows
    from raydpo.batches.micro_batches import lay_out as lay_out
    from raydpo.batches.order import Order as Order
    from raydpo.batches.packing import batches_by_length as batches_by_length
    from raydpo.batches.packing import pack as pack

_HOMES = {
    "MicroBatch": "raydpo.batches.micro_batches",
    "Order": "raydpo.batches.order",
    "batches_by_length": "raydpo.batches.packing",
    "collate": "raydpo.batches.micro_batches",
    "collate_rows": "raydpo.batches.micro_batches",
    "lay_out": "raydpo.batches.micro_batches",
    "pack": "raydpo.batches.packing",
}

__all__ = ["MicroBatch", "Order", "batches_by_length", "collate", "collate_rows", "lay_out", "pack"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
