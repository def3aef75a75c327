"""A model of a folder's class and shape without its weights, for questions that its names and shapes answer.

Comes in: a folder with config.json. Goes out: a model on the meta device. Decision: some families cannot be made so, and
whoever asks looks again where the weights are loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from raydpo.models.auto_class import auto_class

NOT_MADE = (OSError, LookupError, ImportError, RuntimeError, TypeError, ValueError, AttributeError, AssertionError)
"""What making a model without weights may raise."""


def without_weights(folder: Path) -> Any:
    """The model of the config in `folder` on the meta device. Raises one of `NOT_MADE`."""
    from transformers import AutoConfig

    with torch.random.fork_rng(), torch.device("meta"):
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
        return auto_class(config.to_dict()).from_config(config, trust_remote_code=False)
