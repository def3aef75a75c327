"""torch.compile for the layers of a decoder, in a way that other batches do not have them compiled anew."""

from __future__ import annotations

from typing import Any

from raydpo.errors import ConfigError
from raydpo.models.attention import register
from raydpo.models.layout import Layout
from raydpo.models.memory import decoder_layers


def compile_layers(model: Any, layout: Layout) -> None:
    """Compile every decoder layer at its first call, for any length.

    Packed, graphs end before the attention and go on after it: it gets the segments of the stream, which are other ones
    at each step. What is compiled is the rest of a layer: norms, projections, rotary embeddings, the MLP. Raises
    ConfigError for a model whose layers transformers does not list.
    """
    layers = decoder_layers(model)
    if not layers:
        raise ConfigError(
            f"train.compile: {type(model).__name__} has no layers that can be compiled one by one. Nothing was trained. Leave "
            "the key out."
        )
    if layout == "packed":
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        base.set_attn_implementation(register(in_graphs=False))
    for layer in layers:
        layer.compile(dynamic=True)
