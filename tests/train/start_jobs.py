"""What a start moves and reads, counted. Module-level functions of (place, ...), sent by name to the processes of a Gang."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from raydpo.models import hollow, slices
from raydpo.train import TrainSpec, start
from raydpo.train.trainer import build_trainer
from tests.train import jobs
from tests.train.gang import Place


class Moves(NamedTuple):
    """Elements that modules of more than one tensor moved in a start, of the largest tensor that moved alone, and of the
    model's largest and all weights."""

    whole: int
    alone: int
    largest: int
    weights: int


def count_moves(place: Place, spec: TrainSpec) -> Moves:
    """Every `.to` of a module and of a tensor until the optimizer is made."""
    whole, alone = [0], [0]
    honest_module, honest_tensor = nn.Module.to, torch.Tensor.to

    def module_to(self: nn.Module, *args: Any, **options: Any) -> Any:
        tensors = [*self.parameters(), *self.buffers()]
        if len(tensors) > 1:
            whole.append(sum(tensor.numel() for tensor in tensors))
        return honest_module(self, *args, **options)

    def tensor_to(self: torch.Tensor, *args: Any, **options: Any) -> Any:
        alone.append(self.numel())
        return honest_tensor(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "to", module_to)
        patch.setattr(torch.Tensor, "to", tensor_to)
        trainer = build_trainer(place, spec)
    sizes = [getattr(p, "ds_numel", p.numel()) for p in trainer.engine.engine.module.parameters()]
    return Moves(sum(whole), max(alone), max(sizes), sum(sizes))


class Reads(NamedTuple):
    """Bytes that this rank read in a start, of all weights and of the largest, and whether it loaded the model whole."""

    read: int
    weights: int
    largest: int
    whole: bool


def count_reads(place: Place, spec: TrainSpec) -> Reads:
    """Everything that goes through a reader of slices until the optimizer is made."""
    readers, whole = [], []
    honest_init, honest_load = slices.SliceReader.__init__, start.load_model

    def init(self: slices.SliceReader) -> None:
        honest_init(self)
        readers.append(self)

    def load(*args: Any) -> Any:
        whole.append(args)
        return honest_load(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slices.SliceReader, "__init__", init)
        patch.setattr(start, "load_model", load)
        trainer = build_trainer(place, spec)
    weights = [p for name, p in trainer.engine.engine.module.named_parameters() if "lora_" not in name]
    sizes = [p.ds_numel * p.element_size() for p in weights]
    trainer.close()
    return Reads(sum(reader.bytes_read for reader in readers), sum(sizes), max(sizes), bool(whole))


def magnitudes(place: Place, spec: TrainSpec) -> tuple[dict[str, torch.Tensor], int, int]:
    """DoRA's magnitudes before step 1, bytes that this rank read, and bytes of the base's weights in files of float32."""
    import deepspeed

    readers = []
    honest_init = slices.SliceReader.__init__

    def init(self: slices.SliceReader) -> None:
        honest_init(self)
        readers.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slices.SliceReader, "__init__", init)
        trainer = build_trainer(place, spec)
    named = dict(trainer.engine.engine.module.named_parameters())
    size = sum(p.ds_numel * 4 for name, p in named.items() if "lora_" not in name)
    found = {}
    for name, weight in named.items():
        if "magnitude" in name:
            with deepspeed.zero.GatheredParameters([weight]):
                found[name.removeprefix("model.")] = weight.detach().clone()
    trainer.close()
    return found, sum(reader.bytes_read for reader in readers), size


def train_read_whole(place: Place, spec: TrainSpec) -> tuple[list[Any], str]:
    """The loop where no model can be read in parts."""

    def refuse(*args: Any) -> Any:
        raise hollow.WholeNeeded("this test says so")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "hollow_model", refuse)
        return jobs.train(place, spec)
