"""Batches: order (seed and step -> examples), pack (token budget, balanced ranks), collate (tensors)."""

from raydpo.batches.collate import MicroBatch, collate, collate_rows, lay_out
from raydpo.batches.order import Order
from raydpo.batches.pack import batches_by_length, pack

__all__ = ["MicroBatch", "Order", "batches_by_length", "collate", "collate_rows", "lay_out", "pack"]
