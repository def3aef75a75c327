"""A checkpoint's model before any step, and what rank 0 held of it. Module-level functions, sent by name to a Gang."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch

from raydpo.train import TrainSpec
from raydpo.train.trainer import build_trainer
from tests.train.gang import Place


class Exported(NamedTuple):
    """Bytes of copies in CPU memory that were alive when a further one was made, at most; of the largest weight; of all."""

    held: int
    largest: int
    weights: int


def export_start(place: Place, spec: TrainSpec) -> Exported:
    """Stage step 0."""
    held: list[Any] = []
    most = [0]
    honest = torch.Tensor.to

    def to(self: torch.Tensor, *args: Any, **options: Any) -> Any:
        found = honest(self, *args, **options)
        if options.get("copy"):
            held.append(torch.multiprocessing.reductions.StorageWeakRef(found.untyped_storage()))
            sizes.append(found.nbytes)
            alive = sum(size for size, storage in zip(sizes, held, strict=True) if not storage.expired())
            most[0] = max(most[0], alive)
        return found

    sizes: list[int] = []
    trainer = build_trainer(place, spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "to", to)
        trainer.stage(0, {}, "").result()
    weights = [
        getattr(weight, "ds_numel", weight.numel()) * weight.element_size()
        for weight in trainer.engine.engine.module.parameters()
    ]
    trainer.close()
    return Exported(most[0], max(weights), sum(weights))
