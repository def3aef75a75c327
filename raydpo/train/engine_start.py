"""The weights of another start, read in place into an engine that stands.

Comes in: an engine, and the spec of the run that is next. Goes out: the engine as if it had been built for that spec: weights
from the folder, a new adapter, Adam before its first step. Decision: each rank reads the elements that it holds, through the
skeleton of a model that has places instead of weights, so that names, ties and dtypes are those of a start; no second model
is in memory, and what the engine made itself is not read. What has no such skeleton, or another one than the engine, is
refused before anything is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raydpo.models.hollow import HollowModel, WholeNeeded, hollow_model
from raydpo.models.logprobs import AnswerLogProbs
from raydpo.models.lora import add_lora
from raydpo.models.refill import described
from raydpo.models.slices import BLOCK_ELEMENTS, Readable, SliceReader
from raydpo.models.streamed_weights import kept_buffers
from raydpo.models.text_part import freeze_what_text_does_not_reach
from raydpo.train.deepspeed_engine import DeepSpeedEngine
from raydpo.train.held_state import held, refresh, whole_shape
from raydpo.train.sharding import refuse_not_finite_anywhere
from raydpo.train.spec import TrainSpec
from raydpo.train.state_files import Fragment


@dataclass(frozen=True)
class StartSkeleton:
    """The model of a start without weights, in `AnswerLogProbs`: parameters by name, and the places of those in its files."""

    scoring: AnswerLogProbs
    hollow: HollowModel
    parameters: dict[str, nn.Parameter]
    places: dict[int, Readable]

    def values(self, name: str, first: int, count: int) -> Iterator[tuple[int, Tensor]]:
        """(offset, elements) of a flattened parameter from `first` on, block by block, in the dtype of a start."""
        parameter = self.parameters[name]
        place = self.places.get(id(parameter))
        for offset in range(0, count, BLOCK_ELEMENTS):
            size = min(BLOCK_ELEMENTS, count - offset)
            if place is None:  # of the adapter, which is drawn and not read
                yield offset, parameter.detach().reshape(-1)[first + offset : first + offset + size]
                continue
            block = torch.empty(size, dtype=parameter.dtype)
            place.read(self.reader, first + offset, block)
            yield offset, block

    @property
    def reader(self) -> SliceReader:
        return self.hollow.reader


def skeleton_of(spec: TrainSpec, engine: DeepSpeedEngine) -> StartSkeleton:
    """Of the model of `spec`, as a start makes it. Raises WholeNeeded where `engine` could not take its weights."""
    hollow = hollow_model(spec.model.here(), spec.dtype, spec.config.model.attention)
    model, lora = hollow.model, spec.config.train.lora
    freeze_what_text_does_not_reach(model)
    if lora is not None:
        model = add_lora(model, seed=spec.config.run.seed, **lora.placed())
    scoring = AnswerLogProbs(model, spec.chunk_tokens)
    found = StartSkeleton(scoring, hollow, dict(scoring.named_parameters()), hollow.places_of(scoring))
    there = {name: (whole_shape(p), p.requires_grad) for name, p in engine.engine.module.named_parameters()}
    if there != {name: (tuple(p.shape), p.requires_grad) for name, p in found.parameters.items()}:
        raise WholeNeeded("its weights have other names or shapes than those that stand")
    if described(_base(model)) != described(_base(engine.engine.module.model)):
        raise WholeNeeded("its config.json describes another model than the one that stands")
    return found


@torch.no_grad()
def take_start(engine: DeepSpeedEngine, skeleton: StartSkeleton) -> int:
    """Give `engine` the start of `skeleton`; bytes that this rank read. Collective.

    Raises ConfigError, on all ranks alike, for weights that are not finite.
    """
    module = engine.engine.module
    named = dict(module.named_parameters())
    for fragment in held(engine.engine, engine.stage):
        dtype = named[fragment.name].dtype
        _fill(skeleton, fragment.name, dtype, fragment.start, fragment.values["master"])
        _before_first_step(fragment)
    for name, parameter in named.items():
        if not parameter.requires_grad:
            start, target = _part(parameter)
            _fill(skeleton, name, target.dtype, start, target)
    refresh(engine.engine, engine.stage)
    theirs = dict(kept_buffers(skeleton.scoring))
    for name, buffer in kept_buffers(module):
        buffer.copy_(theirs[name])
    skeleton.reader.close()
    refuse_not_finite_anywhere(skeleton.reader.not_finite)
    name_as(module.model, skeleton.scoring.model)
    return skeleton.reader.bytes_read


@torch.no_grad()
def start_again(engine: DeepSpeedEngine) -> None:
    """Give `engine` the start of a folder that its own weights were written to: rounded as there, and before Adam's first step.

    Collective. Raises ConfigError, on all ranks alike, for weights that are not finite.
    """
    named = dict(engine.engine.module.named_parameters())
    not_finite = []
    for fragment in held(engine.engine, engine.stage):
        master = fragment.values["master"]
        if named[fragment.name].dtype != master.dtype:
            master.copy_(master.to(named[fragment.name].dtype))
        if not bool(torch.isfinite(master).all()):
            not_finite.append(fragment.name)
        _before_first_step(fragment)
    refresh(engine.engine, engine.stage)
    refuse_not_finite_anywhere(not_finite)


def _before_first_step(fragment: Fragment) -> None:
    for kind in ("exp_avg", "exp_avg_sq"):
        fragment.values[kind].zero_()
    fragment.step.zero_()


def _fill(skeleton: StartSkeleton, name: str, dtype: torch.dtype, first: int, target: Tensor) -> None:
    """dtype: of the weight that forwards read, to which a float32 copy is rounded as at a start."""
    for offset, block in skeleton.values(name, first, target.numel()):
        target[offset : offset + len(block)].copy_(block.to(dtype))


def _part(parameter: Any) -> tuple[int, Tensor]:
    """(first element, elements) of a frozen parameter that are on this rank."""
    if not hasattr(parameter, "ds_tensor"):
        return 0, parameter.detach().view(-1)
    size = parameter.ds_tensor.ds_numel
    first = min(size * parameter.ds_zero_partition_rank, parameter.ds_numel)
    return first, parameter.ds_tensor.detach().view(-1)[: min(size, parameter.ds_numel - first)]


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def name_as(model: Any, other: Any) -> None:
    """What an export says of its start is that of `other`."""
    ours, theirs = _base(model), _base(other)
    for key in ("name_or_path", "transformers_version", "use_cache"):
        if hasattr(theirs.config, key):
            setattr(ours.config, key, getattr(theirs.config, key))
    ours.name_or_path = theirs.name_or_path
    ours.generation_config = theirs.generation_config
    for name, adapter in getattr(model, "peft_config", {}).items():
        adapter.base_model_name_or_path = other.peft_config[name].base_model_name_or_path
