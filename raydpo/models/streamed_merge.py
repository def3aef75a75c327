"""An adapter and its base -> a folder of the merged model, matrix by matrix: no model is in memory.

Comes in: a base whose tensors can be read one by one, and a LoRA adapter (rsLoRA, DoRA) on matrices of its own. Goes out:
weights and config. Decision: PEFT merges each layer by itself, in float32, with the matrix there that it merges into, so that
the files are those of a merge of the whole model, bit for bit. Price: what layers say beside their adapter and merged is
compared for each of them on a few random rows, and no more for the model, which would have to be whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raydpo.models.adapter_files import shapes
from raydpo.models.hollow import HollowModel, WholeNeeded, hollow_model
from raydpo.models.merging import plain_name, tied_modules, unmergeable, with_adapter
from raydpo.models.resolve import ResolvedModel
from raydpo.models.streamed_weights import StreamedWeights, kept_buffers, without_data

ALLOWED_SHARE = 1e-4
"""Largest difference of a merged layer's outputs in float32, as a share of the largest output."""
_NUM_ROWS = 4


@torch.no_grad()
def stream_merged(found: ResolvedModel, out: Path, dtype: str, max_bytes: int) -> StreamedWeights:
    """Write weights and config of the adapter `found` on its base to `out`, in `dtype`: the one who wrote the weights.

    Raises WholeNeeded where it takes a whole model, ConfigError where the two do not fit or merging changes what they say.
    """
    adapter = found.here()
    hollow, target = hollow_base(found), hollow_model(found.whole().here(), dtype, "auto")
    names = {id(parameter): name for name, parameter in hollow.model.named_parameters()}
    layers = [layer for _, layer in lora_layers(with_adapter(hollow.model, adapter))]
    planned = without_data(target.model)
    stream = StreamedWeights(target.model, planned, out / "weights", max_bytes)
    merged = set()
    for layer in layers:
        own = list(layer.get_base_layer().parameters(recurse=False))
        for parameter in own:
            merged.add(id(parameter))
            parameter.data = hollow.reader.whole(hollow.places[id(parameter)], torch.float32)
        merge_layer(layer, adapter)
        for parameter in own:
            name = names[id(parameter)]
            stream.add(name, parameter.data.to(planned[name].dtype))
            parameter.data = torch.zeros((), dtype=torch.float32).expand(parameter.shape)
    _add_others(stream, hollow, {place: name for place, name in names.items() if place not in merged}, planned)
    for name, buffer in kept_buffers(target.model):
        stream.add(name, buffer)
    hollow.reader.close()
    target.model.save_pretrained(str(out), state_dict={})
    stream.move_into(out)
    return stream


def hollow_base(found: ResolvedModel) -> HollowModel:
    """The base of the adapter `found` in float32, without weights. Raises WholeNeeded where its merge takes a whole model."""
    base = found.base
    if base is None or base.base is not None or base.four_bit is not None or found.four_bit is not None:
        raise WholeNeeded("its base is packed, or an adapter itself")
    if brought := sorted(name for name in shapes(found.here()) if "lora_" not in name):
        raise WholeNeeded(f"the adapter brings {brought[0]}")
    return hollow_model(base.here(), "float32", "auto")


def _add_others(
    stream: StreamedWeights, hollow: HollowModel, names: dict[int, str], planned: dict[str, Tensor]
) -> None:
    for place, name in names.items():
        stream.add(name, hollow.reader.whole(hollow.places[place], torch.float32).to(planned[name].dtype))


def lora_layers(adapted: Any) -> Iterator[tuple[str, Any]]:
    """(name in the base, layer of LoRA). Raises WholeNeeded where one is of another kind, or not alone with its matrix."""
    from peft.tuners.lora import Embedding, Linear
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers.pytorch_utils import Conv1D

    if next(tied_modules(adapted), None) is not None:
        raise WholeNeeded("the adapter changes a matrix that two modules share")
    for name, module in adapted.named_modules():
        if isinstance(module, BaseTunerLayer):
            if not isinstance(module, Linear | Embedding) or not isinstance(
                module.get_base_layer(), nn.Linear | nn.Embedding | Conv1D
            ):
                raise WholeNeeded(f"the adapter on {name} is a {type(module).__name__}")
            yield plain_name(name), module


def merge_layer(layer: Any, adapter: Path) -> None:
    """Merge the adapter into the matrix of `layer`, in place. Raises ConfigError where that changes what the layer says."""
    rows = _rows(layer.get_base_layer())
    before = layer(rows)
    try:
        layer.merge()
    except (ValueError, NotImplementedError, RuntimeError) as error:
        raise unmergeable(adapter, f"PEFT cannot merge it: {error}") from error
    after = layer.get_base_layer()(rows)
    apart, largest = float((after - before).abs().max()), float(before.abs().max())
    if not apart <= ALLOWED_SHARE * largest:
        raise unmergeable(adapter, f"a merged layer gives outputs that are {apart:.3g} off, of at most {largest:.3g}")


def _rows(layer: Any) -> Tensor:
    if isinstance(layer, nn.Embedding):
        return torch.linspace(0, layer.num_embeddings - 1, _NUM_ROWS).round().long()
    size = layer.in_features if isinstance(layer, nn.Linear) else layer.weight.shape[0]
    return torch.randn(_NUM_ROWS, size, generator=torch.Generator().manual_seed(0))
