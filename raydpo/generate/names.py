"""Names of weights in a model folder: what vLLM reads, made of what trainers send.

Comes in: weights under the names that they have in a transformers model. Goes out: the same under the names of the files.
Decision: transformers fuses and renames weights when it loads (all experts of a layer are one tensor in memory and many
in a file) and undoes that when it saves; that code of transformers is used. What it gives is compared with the files that
vLLM starts from before anything is sampled, so vLLM is only ever given names that it has read once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.core_model_loading import revert_weight_conversion

from raydpo.errors import ConfigError
from raydpo.generate.weights import Expected, Shape, some
from raydpo.models.auto_class import auto_class


class FolderNames:
    """Of the safetensors in `folder`. expected: what a push must bring, under the names in memory."""

    def __init__(self, folder: str, config: Any) -> None:
        """Reads headers only. Raises ConfigError where the files lack a name under which a new weight would go."""
        with torch.device("meta"):
            self._model = auto_class(config.to_dict()).from_config(config, trust_remote_code=False)
        self.expected = Expected.of(self._model)
        self._there = _shapes_in(folder)
        new = {name: torch.empty(shape, device="meta") for name, shape in self.expected.shapes.items()}
        lost = [name for name, weight in self.of(new).items() if self._there.get(name) != tuple(weight.shape)]
        if lost:
            raise ConfigError(
                f"generate.engine: vllm reads weights under the names that they have in {folder}, and new ones come under "
                f"those that transformers {self._model.config.model_type} models are saved with; the folder does not have, in "
                f"this shape: {some(sorted(lost))}. The weights of the first round could not have been loaded, so nothing was "
                "sampled. Set generate.engine: transformers, which takes weights under their names in memory."
            )

    def of(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        """Name in memory -> tensor of all weights; then name in the folder -> tensor.

        Memory: most are the same tensors or parts of them; what was joined along an inner axis (gate and up projections of
        experts) is copied.
        """
        saved: dict[str, Any] = revert_weight_conversion(self._model, dict(weights))
        return {self._in_folder(name): weight for name, weight in saved.items()}

    def _in_folder(self, name: str) -> str:
        """Folders of base models have the names without the prefix of the causal model."""
        short = name.removeprefix(f"{self._model.base_model_prefix}.")
        return short if short in self._there and name not in self._there else name


def _shapes_in(folder: str) -> dict[str, Shape]:
    """Name -> shape of every weight in the safetensors of a model folder, from their headers."""
    shapes: dict[str, Shape] = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            shapes |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    return shapes
