"""The weights of an adapter and its base, one layer at a time, each merged while it is read.

Comes in: a LoRA adapter (rsLoRA, DoRA) on matrices of its own, and its base. Goes out: what `LayerWeights` is for a model, with
the bits of a merge of the whole. Decision: PEFT merges each matrix by itself in float32, which is cast once, as for a folder
that is written merged. Price: a layer is there in float32 for a moment, and is merged and compared at every pass.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import nn

from raydpo.models.hollow import WholeNeeded
from raydpo.models.layer_weights import LayerWeights
from raydpo.models.merging import with_adapter
from raydpo.models.pretrained import cast
from raydpo.models.resolve import ResolvedModel
from raydpo.models.streamed_merge import hollow_base, lora_layers, merge_layer


class MergedLayers(LayerWeights):
    """`LayerWeights` of the adapter `found` on its base. Raises as that, and ConfigError where the two do not fit or merging
    changes what they say."""

    def __init__(self, found: ResolvedModel, dtype: torch.dtype, attention: str, device: torch.device | str) -> None:
        self._adapter, self._asked = found.here(), dtype
        try:
            hollow = hollow_base(found)
            self._beside = dict(lora_layers(with_adapter(hollow.model, self._adapter)))
        except WholeNeeded as why:
            raise NotImplementedError(f"its merge takes the whole model: {why}") from why
        hollow.reader.close()
        super().__init__(found.whole().here(), torch.float32, attention, device)

    def _load(self, part: int) -> None:
        super()._load(part)
        modules = self._modules_of(part)
        for name, layer in self._beside.items():
            module = self.model.get_submodule(name)
            if module in modules and not module.weight.is_meta:
                self._merge(module, layer)
        cast(self.model, self._asked, only=modules)

    def _modules_of(self, part: int) -> set[nn.Module]:
        if part >= 0:
            return set(self.layers[part].modules())
        inside = set(chain.from_iterable(layer.modules() for layer in self.layers))
        return set(self.model.modules()) - inside

    @torch.no_grad()
    def _merge(self, module: nn.Module, layer: Any) -> None:
        """Give the matrix of `module` what the adapter adds to it. The file that it may be mapped from stays as it is."""
        below = layer.get_base_layer()
        for name, parameter in below.named_parameters(recurse=False):
            parameter.data = getattr(module, name).detach().clone()
        merge_layer(layer, self._adapter)
        layer.merged_adapters.clear()
        for name, parameter in below.named_parameters(recurse=False):
            getattr(module, name).data = parameter.data
            parameter.data = torch.zeros((), dtype=torch.float32).expand(parameter.shape)
