"""What ranks share of their weights in a file, against what they would send. Module-level functions, sent by name to a Gang."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from raydpo.artifacts import shared_files
from raydpo.artifacts.shared_files import SharedFile
from raydpo.generate.arrived import arrived
from raydpo.generate.mapped_weights import mapped
from raydpo.schema.rank_events import WeightsPart
from raydpo.schema.shared_weights import SharedWeights
from raydpo.train import TrainSpec, shared_push
from raydpo.train.push import parts, push
from raydpo.train.trainer import build_trainer
from tests.train.gang import Place


class Shared(NamedTuple):
    """differing: names whose bytes are not those of a part. written: bytes of tensors by this rank. left: files there now."""

    names: list[str]
    differing: list[str]
    written: int
    is_partial: bool
    left: list[str]


@torch.no_grad()
def share_twice(place: Place, spec: TrainSpec, folder: Path, start: Path | None = None) -> Shared:
    """Share two times, after a step each, and compare with the parts of the second. start: of `share`."""
    honest, written = SharedFile.write, [0]

    def write(self: SharedFile, offset_bytes: int, data: memoryview) -> None:
        written[0] += len(data)
        honest(self, offset_bytes, data)

    trainer = build_trainer(place, spec)
    model, stage = trainer.engine.engine.module.model, trainer.engine.stage
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_files, "folders", lambda: (folder,))
        for step in range(2):
            with torch.enable_grad():
                trainer.update(step)
            with pytest.MonkeyPatch.context() as counted:
                if step:
                    counted.setattr(SharedFile, "write", write)
                shared = shared_push.share(model, stage, place.rank, place.num_ranks, start)
            assert isinstance(shared, SharedWeights), shared
        found = mapped(shared)
        assert found is not None
        came = {name: weight for part in arrived(found) for name, weight in part.items()}
        expected: dict[str, Any] = {}
        for part in parts(model, stage, True):
            assert isinstance(part, WeightsPart)
            expected |= part.weights
        left = [path.name for path in folder.iterdir()]
        assert {name: (weight.dtype, weight.shape) for name, weight in came.items()} == {
            name: (weight.dtype, weight.shape) for name, weight in expected.items()
        }
        differing = [name for name, weight in expected.items() if not torch.equal(weight, came[name])]
        torch.distributed.barrier()
        if place.rank == 0:
            shared_push._forget()
    trainer.close()
    return Shared(sorted(found), differing, written[0], shared.is_partial, left)


def push_without(place: Place, spec: TrainSpec, folder: Path, lack: str) -> tuple[list[Any], list[str]]:
    """Events of a push where no file can be shared: there is no room at all, a rank is elsewhere, or it runs out on the way."""
    trainer = build_trainer(place, spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_files, "folders", lambda: () if lack == "room" else (folder,))
        if lack == "node" and place.rank == 1:
            patch.setattr(shared_files, "opened", lambda path, key, is_writer: None)
        if lack == "space" and place.rank == place.num_ranks - 1:
            patch.setattr(SharedFile, "write", _full)
        events = [type(event).__name__ + getattr(event, "text", "") for event in push(trainer)]
    torch.distributed.barrier()  # small weights are whole on every rank: nobody waited for rank 0, which removes the file
    trainer.close()
    return events, [path.name for path in folder.iterdir()]


def _full(self: SharedFile, offset_bytes: int, data: memoryview) -> None:
    raise OSError(28, "No space left on device")
