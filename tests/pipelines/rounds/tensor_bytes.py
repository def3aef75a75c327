"""What of a message is tensors: their bytes, counted while it is pickled."""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch


class TensorBytes(pickle.Pickler):
    """Counts the bytes of tensors in whatever is put into it."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO())
        self.total = 0

    def persistent_id(self, value: Any) -> str | None:
        if isinstance(value, torch.Tensor):
            self.total += value.nbytes
            return "tensor"
        return None
