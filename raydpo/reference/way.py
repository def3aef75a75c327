"""How a reference worker holds its model: whole, or one layer at a time.

Comes in: what `reference.weights` says, the model and the device. Goes out: the way, and a sentence where a person should know.
Decision: auto streams only what does not fit, because a whole model is read once and a streamed one once a pass. Values are
the same either way, bit for bit, so that it may be decided on each worker for itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Literal

import torch

from raydpo.errors import ConfigError
from raydpo.models.resolve import ResolvedModel
from raydpo.models.weight_shapes import shapes_of_model

Weights = Literal["auto", "whole", "streamed"]
USED_SHARE = 0.8
"""Of the free memory, what weights may take; the rest is for activations and logits."""
MAY_STREAM_BYTES = 8_000_000_000
"""Weights of at most so many bytes are taken to fit, until a worker sees its device."""
PACKED_BYTES = 0.7
"""A weight of a model that is packed into 4 bits, on average: its scales, and embedding and head in 16 bits."""
_ITEM_BYTES = {"float32": 4, "bfloat16": 2}
_GB = 1e9


@dataclass(frozen=True)
class Way:
    """is_streamed: one layer at a time. said: why, for a person; empty where there is nothing to say."""

    is_streamed: bool
    said: str = ""


def choose_way(weights: Weights, model: ResolvedModel, dtype: str, device: str, num_sharing: int = 1) -> Way:
    """The way of a worker. num_sharing: workers that share the memory of its device. Raises ConfigError for a packed model
    that is to be streamed."""
    if weights == "whole":
        return Way(False)
    hindrance = _hindrance(model)
    if weights == "streamed":
        if hindrance:
            raise cannot_stream(model, hindrance)
        return Way(True)
    if model.four_bit is not None:
        return Way(False)  # half a byte a weight, and its layers are packed when it is loaded
    rooms = _rooms(model, dtype, device, num_sharing)
    if (tight := next((room for room in rooms if room[0] > USED_SHARE * room[1]), None)) is None:
        return Way(False)
    needed, free, kind = tight
    sizes = f"its weights take {needed / _GB:.1f} GB in {kind}, and {free / _GB:.1f} GB are free for them"
    if hindrance:
        return Way(False, f"{sizes}; it cannot be streamed ({hindrance}), so it is loaded whole and may not fit")
    return Way(
        True, f"{sizes}: it is streamed, each layer is read from its files once a pass (reference.weights: auto)"
    )


def _rooms(model: ResolvedModel, dtype: str, device: str, num_sharing: int) -> Iterator[tuple[int, float, str]]:
    """(bytes of the whole model, bytes that are free for them, dtype) where it stands. An adapter is merged in main memory."""
    places = {device: (replace(model.whole(), four_bit=None), dtype)}
    if model.base is not None:
        places["cpu"] = (model, "float32")
    for place, (found, kind) in places.items():
        if (needed := whole_bytes(found, kind)) is not None:
            yield needed, free_bytes(place) / num_sharing, kind


def _hindrance(model: ResolvedModel) -> str:
    """Why a model cannot be read layer by layer, as a clause; empty where it can."""
    if model.four_bit is not None:
        return "it is packed into 4 bits when it is loaded, which its layers alone are not"
    if model.base is None:
        return ""
    if model.base.four_bit is not None:
        return "its base is packed into 4 bits when it is loaded"
    return "its base is an adapter itself" if model.base.base is not None else ""


def may_stream(weights: Weights, model: ResolvedModel, dtype: str) -> bool:
    """Whether a worker may come to stream `model`, asked where its device is not known."""
    if weights != "auto":
        return weights == "streamed"
    return not _hindrance(model) and (whole_bytes(model, dtype) or 0) > MAY_STREAM_BYTES


def cannot_stream(model: ResolvedModel, why: object) -> ConfigError:
    """The error of a model that is to be streamed and cannot be."""
    return ConfigError(
        f"reference.weights: streamed; {model.name} cannot be held one layer at a time: {why}. Nothing was scored. Set "
        "reference.weights: whole, on a device that it fits into; an adapter can be merged first."
    )


def whole_bytes(model: ResolvedModel, dtype: str) -> int | None:
    """Bytes of a model that is loaded whole in `dtype`, the base of an adapter in float32; None where its files do not say."""
    shapes = shapes_of_model(model.whole().here())
    if shapes is None:
        return None
    num_weights = sum(map(prod, shapes.values()))
    if model.four_bit is not None:
        return int(num_weights * PACKED_BYTES)
    return num_weights * (_ITEM_BYTES[dtype] if model.base is None else 4)


def free_bytes(device: str) -> int:
    """Bytes that are free on a GPU, or of main memory within the limit of the control group; no limit where none is told."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    told = Path("/proc/meminfo")
    lines = told.read_text().splitlines() if told.is_file() else []
    available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return min([*available, *_limits(Path("/sys/fs/cgroup"))], default=2**62)


def _limits(root: Path) -> Iterator[int]:
    """What the control group of a container may have, in either version."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            yield int((root / name).read_text())
        except (OSError, ValueError):
            continue
