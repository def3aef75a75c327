"""The weights of one loaded model in the place of another's of the same architecture.

Comes in: two models as `load_model` gives them. Goes out: the first one, which computes what the second does. Decision: what
is alike is found by the settings and by every name, shape and dtype before a weight is touched, so that a model is one or the
other and never a mixture. Price: both stand in main memory for a moment.
"""

from __future__ import annotations

from typing import Any

import torch

_ASIDE = frozenset({"_name_or_path", "transformers_version", "use_cache", "dtype", "torch_dtype"})
"""Keys of a config that say nothing of the model."""


def described(model: Any) -> dict[str, Any]:
    """What the config of a loaded model says of what it computes."""
    return {name: value for name, value in model.config.to_dict().items() if name not in _ASIDE}


def is_alike(model: Any, other: Any) -> bool:
    """Whether both have the same class, settings, and tensors of the same names, shapes and dtypes."""
    of_class = {"architectures": None}  # a file may name none, and the class is there
    if type(model) is not type(other) or described(model) | of_class != described(other) | of_class:
        return False
    ours, theirs = (
        {name: (each.shape, each.dtype) for name, each in both.state_dict().items()} for both in (model, other)
    )
    return ours == theirs


@torch.no_grad()
def refill(model: Any, fresh: Any) -> None:
    """Copy all weights of `fresh` into `model`, which is alike, and go back to the attention that loading gives."""
    theirs = fresh.state_dict()
    for name, tensor in model.state_dict().items():
        tensor.copy_(theirs[name])
    model.set_attn_implementation(fresh.config._attn_implementation)
