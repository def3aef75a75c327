"""A frozen model as a worker holds it: whole, or one layer at a time. Reference workers and `raydpo evaluate` ask here.

Comes in: what `reference.weights` says, the model and the device. Goes out: the module, and what its calls go through.
An adapter is merged into its base, whole or layer by layer. Decision: where nobody asked for it and a model cannot be held one
layer at a time, it is loaded whole, with a word. Price: it may not fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from raydpo.models.layer_stream import LayerStream
from raydpo.models.layer_weights import LayerWeights
from raydpo.models.merged_layers import MergedLayers
from raydpo.models.pretrained import DTYPES, load_model
from raydpo.models.resolve import ResolvedModel
from raydpo.models.together import Together, one_by_one
from raydpo.reference.way import Weights, cannot_stream, choose_way


@dataclass(frozen=True, eq=False)
class HeldModel:
    """A causal LM that is not trained.

    model: the module. stream: what reads its layers, None where it is whole. said: how it is held, where that is worth a word.
    """

    model: Any
    stream: LayerStream | None = None
    said: str = ""

    @property
    def together(self) -> Together:
        """Makes forwards that do not wait for each other."""
        return one_by_one if self.stream is None else self.stream.run

    @property
    def has_read(self) -> tuple[int, int]:
        """Passes over the layers and bytes of weights so far; nothing of a whole model."""
        return (0, 0) if self.stream is None else (self.stream.passes, self.stream.weights.files.bytes_read)


Hold = Callable[[str], HeldModel]
"""Device -> the model on it."""


def hold(
    model: ResolvedModel, dtype: str, attention: str, weights: Weights, num_sharing: int, device: str
) -> HeldModel:
    """`model` on `device`. num_sharing: workers that share its memory. Raises ConfigError for what cannot be loaded, or is to
    be streamed and cannot be."""
    way = choose_way(weights, model, dtype, device, num_sharing)
    said = way.said
    if way.is_streamed:
        try:
            stream = LayerStream(_by_layers(model, DTYPES[dtype], attention, device))
            return HeldModel(stream.model.requires_grad_(False), stream, said)
        except NotImplementedError as error:
            if weights == "streamed":
                raise cannot_stream(model, error) from error
            said = f"{said}; but {error}, so it is loaded whole and may not fit"
    return HeldModel(load_model(model, dtype, attention).to(device).requires_grad_(False), None, said)


def _by_layers(model: ResolvedModel, dtype: torch.dtype, attention: str, device: str) -> LayerWeights:
    if model.base is not None:
        return MergedLayers(model, dtype, attention, device)
    return LayerWeights(model.here(), dtype, attention, device)
