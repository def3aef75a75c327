"""An adapter in a file, as a LoRA run pushes it, and what it makes of a model, by the formula."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from raydpo.generate.mapped_weights import handed_over
from raydpo.schema.shared_weights import AdaptedMatrix, SharedWeights, factor_name

RANK, SCALING = 2, 0.5
COPIED = "model.norm.weight"


def factors_of(start: Path, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """(A [rank, in], B [out, rank]) of the matrices of attention and MLP that vLLM fuses with others."""
    random = torch.Generator().manual_seed(seed)
    shapes = {name: weight.shape for name, weight in load_file(start / "model.safetensors").items()}
    return {
        name: (torch.randn(RANK, shape[1], generator=random), torch.randn(shape[0], RANK, generator=random))
        for name, shape in sorted(shapes.items())
        if "q_proj" in name or "up_proj" in name
    }


@contextmanager
def pushed_adapter(start: Path, seed: int) -> Iterator[SharedWeights]:
    """Factors, and one module that is trained whole, in a file that is there until the context ends."""
    found = factors_of(start, seed)
    weights = {factor_name(name, place): pair[place] for name, pair in found.items() for place in (0, 1)}
    adapted = tuple(AdaptedMatrix(name, "float32", SCALING) for name in found)
    with handed_over({**weights, COPIED: 2 * load_file(start / "model.safetensors")[COPIED]}) as shared:
        yield replace(shared, is_partial=True, adapted=adapted, start=str(start))


def merged_by_hand(start: Path, seed: int) -> dict[str, Tensor]:
    """All weights of `start` with that adapter in them."""
    weights = load_file(start / "model.safetensors")
    for name, (down, up) in factors_of(start, seed).items():
        weights[name] = weights[name] + SCALING * (up @ down)
    return {**weights, COPIED: 2 * weights[COPIED]}
