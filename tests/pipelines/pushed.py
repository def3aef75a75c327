"""The weights that a training sends to whoever keeps a copy of its policy, as a test sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from raydpo.artifacts import shared_files
from raydpo.generate.arrived import arrived
from raydpo.generate.mapped_weights import mapped
from raydpo.schema.rank_events import WeightsPart
from raydpo.schema.shared_weights import SharedWeights


class Pushed(dict[str, torch.Tensor]):
    """Takes the events of a push, by whichever way weights come: name -> a copy. A file is removed, as generators do."""

    def __call__(self, event: Any) -> None:
        if isinstance(event, WeightsPart):
            self.update(event.weights)
        if isinstance(event, SharedWeights):
            found = mapped(event)
            assert found is not None, "another node"
            for part in arrived(found):
                self.update({name: value.clone() for name, value in part.items()})
            assert shared_files.remove(Path(event.path), event.key)
