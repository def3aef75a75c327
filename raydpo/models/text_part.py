"""The part of a model that reads and writes text: what gives hidden states, what gives logits, and what else there is.

Comes in: a causal LM, or a model with towers for images around one. Decision: what text does not reach is frozen, for it gets
no gradient and weight decay alone would still change it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from raydpo.models.packed import num_weights


def text_body(model: Any) -> Any:
    """The module from ids to hidden states. (Of Llama 4, transformers names the whole language model, head included.)"""
    body = model.get_decoder()
    return body.model if hasattr(body, "lm_head") else body


def text_head(model: Any) -> Any:
    """The linear layer from hidden states to logits."""
    found = model.get_output_embeddings()
    return model.get_decoder().get_output_embeddings() if found is None else found


def device_of(model: Any) -> torch.device:
    """Where ids go: the device of the embedding. (Parts that text does not reach may be nowhere.)"""
    found: torch.device = model.get_input_embeddings().weight.device
    return found


def freeze_what_text_does_not_reach(model: Any) -> str:
    """Freeze parameters outside of the text part; a sentence on them, empty where there are none."""
    reached = {id(weight) for part in (text_body(model), text_head(model)) for weight in part.parameters()}
    others = {name: weight for name, weight in model.named_parameters() if id(weight) not in reached}
    for weight in others.values():
        weight.requires_grad_(False)
    if not others:
        return ""
    towers = sorted({name for name, part in _parts(model) if not any(id(p) in reached for p in part.parameters())})
    count = sum(map(num_weights, others.values()))
    return (
        f"only the text part of {type(model).__name__} is trained: the {count:,} weights of {', '.join(towers) or 'others'} "
        "stay as they are, and the export holds them"
    )


def _parts(model: Any) -> list[tuple[str, nn.Module]]:
    """Children of the model and of what wraps its decoder, with parameters."""
    inner = getattr(model, "model", None)
    children = [*model.named_children(), *(inner.named_children() if isinstance(inner, nn.Module) else [])]
    return [(name, part) for name, part in children if next(part.parameters(), None) is not None]
