"""What ranks are asked to do. Module-level functions of (place, ...), sent by name to the processes of a Gang."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import deepspeed
import numpy as np
import pytest
import torch
from torch import Tensor

from raydpo.config.sections import ObjectiveSection
from raydpo.errors import OutOfMemoryError, RaydpoError
from raydpo.objectives.loss import Loss
from raydpo.schema.rank_events import Stepped
from raydpo.train import TrainSpec, deepspeed_engine, loop
from raydpo.train.profile import profiled
from raydpo.train.step import accumulate
from raydpo.train.trainer import Trainer, build_trainer
from tests.train.gang import Place


def train(place: Place, spec: TrainSpec, poison: Mapping[str, float] | None = None) -> tuple[list[Any], str]:
    """The loop as it is: (events, "ErrorClass: message" if it raised one of ours).

    poison: row key -> what its first reference token becomes, on whichever rank holds the row.
    """
    events: list[Any] = []
    source: Iterator[Any] = loop.run(place, spec)
    if poison:
        trainer = build_trainer(place, spec)
        trainer.train = replace(trainer.train, lookup=_poisoned(trainer, poison))
        source = loop._train(trainer)
    try:
        events += source
    except RaydpoError as error:
        return events, f"{type(error).__name__}: {error}"
    return events, ""


def count_compiled(place: Place) -> int:
    """Pieces of code that torch.compile has made a graph of in this process."""
    return int(torch._dynamo.utils.counters["frames"]["ok"])


def disagree(place: Place, spec: TrainSpec) -> str:
    """What a rank says of its start when each has another budget for micro-batches."""
    config = spec.config
    train = config.train.model_copy(update={"tokens_per_microbatch": 500 + place.rank})
    try:
        build_trainer(place, replace(spec, config=config.model_copy(update={"train": train})))
    except RaydpoError as error:
        return f"{type(error).__name__}: {error}"
    return "started"


def _poisoned(trainer: Trainer, poison: Mapping[str, float]) -> Callable[[list[str]], list[np.ndarray]]:
    def lookup(keys: list[str]) -> list[np.ndarray]:
        assert trainer.train.lookup is not None
        values = [nats.copy() for nats in honest(keys)]
        for key, nats in zip(keys, values, strict=True):
            nats[0] = poison.get(key, nats[0])
        return values

    honest = trainer.train.lookup
    assert honest is not None
    return lookup


def train_with_bad_gradient(place: Place, spec: TrainSpec, bad_step: int) -> list[Any]:
    """A gradient that is infinite on the last rank alone in step `bad_step` (from 1), with a finite loss."""
    trainer = build_trainer(place, spec)
    seen = {"step": 0}
    honest = trainer.update

    def update(step: int, is_logged: bool = True) -> Any:
        seen["step"] = step + 1
        return honest(step, is_logged)

    def spoil(gradient: Tensor) -> Tensor:
        bad = seen["step"] == bad_step and place.rank == place.num_ranks - 1
        return gradient * torch.inf if bad else gradient

    trainer.update = update  # type: ignore[method-assign]
    next(p for p in trainer.engine.engine.module.parameters() if p.requires_grad).register_hook(spoil)
    return list(loop._train(trainer))


def train_until_it_fails(place: Place, spec: TrainSpec, bad_step: int) -> tuple[list[Any], str]:
    """(events, the error) of a training whose step `bad_step` (from 1) fails."""
    trainer, events = build_trainer(place, spec), []
    honest = trainer.update

    def update(step: int, is_logged: bool = True) -> Any:
        if step + 1 == bad_step:
            raise RuntimeError("out of memory")
        return honest(step, is_logged)

    trainer.update = update  # type: ignore[method-assign]
    try:
        for event in loop._train(trainer):
            events.append(event)
    except RuntimeError as error:
        return events, str(error)
    return events, ""


def train_without_memory_for_the_optimizer(place: Place, spec: TrainSpec) -> tuple[str, int]:
    """(the error, tokens worth a try) of a training whose optimizer step asks for more memory than there is."""
    trainer = build_trainer(place, spec)
    trainer.engine.step = lambda rate: torch.empty(2**50, dtype=torch.uint8)  # type: ignore[method-assign,assignment]
    try:
        list(loop._train(trainer))
    except OutOfMemoryError as error:
        return str(error), error.smaller
    return "", 0


def watch_profile(
    place: Place, spec: TrainSpec, stop_after: int | None = None
) -> tuple[list[tuple[bool, bool]], tuple[bool, bool]]:
    """(a profiler is on, `update` is the trainer's own) when each step is told of; and at the end, which may be early."""
    trainer = build_trainer(place, spec)
    own = trainer.update

    def state() -> tuple[bool, bool]:
        return torch.autograd._profiler_enabled(), trainer.update == own

    events, states = profiled(trainer, loop._train(trainer)), []
    for event in events:
        if isinstance(event, Stepped):
            states.append(state())
            if len(states) == stop_after:
                break
    events.close()
    return states, state()


def train_and_look(place: Place, spec: TrainSpec) -> tuple[list[Any], dict[str, np.ndarray], list[str]]:
    """(events, weights after training by name, names of those that train). Gathers ZeRO-3 shards."""
    trainer = build_trainer(place, spec)
    model = trainer.engine.engine.module.model
    events = list(loop._train(trainer))
    weights = {}
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            weights[name] = parameter.detach().float().numpy().copy()
    return events, weights, [name for name, p in model.named_parameters() if p.requires_grad]


class Batch(NamedTuple):
    """One global batch: its metrics, its gradient before clipping by name, the sizes of this rank's micro-batches."""

    metrics: dict[str, float]
    gradient: dict[str, np.ndarray]
    sizes: list[int]


def gradient(place: Place, spec: TrainSpec, step: int) -> Batch:
    """Of step `step` (from 0), at stage 0."""
    trainer = build_trainer(place, spec)
    return _gradient(trainer, step)


def gradients(place: Place, spec: TrainSpec, step: int, sections: list[dict[str, Any]]) -> list[Batch]:
    """`gradient` for one objective section after the other, on one engine and one set of data."""
    trainer = build_trainer(place, spec)
    found = []
    for section in sections:
        trainer.loss = Loss(ObjectiveSection.model_validate(section).terms)
        found.append(_gradient(trainer, step))
        trainer.engine.engine.module.zero_grad()
    return found


def _gradient(trainer: Trainer, step: int) -> Batch:
    examples = trainer.order.examples(step)
    sums = accumulate(trainer.engine, trainer.batch_loss(examples), trainer.train.batches(examples))
    model = trainer.engine.engine.module.model
    shares = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for share in shares.values():  # ranks hold their own share until the step; each was multiplied by their number
        torch.distributed.all_reduce(share.div_(trainer.engine.num_ranks))
    sizes = [len(positions) for positions, _ in trainer.train.micro_batches(examples)]
    return Batch(trainer._means(sums), {name: share.numpy().copy() for name, share in shares.items()}, sizes)


def count_layer_calls(place: Place, spec: TrainSpec) -> tuple[int, list[int]]:
    """(micro-batches, forwards of each decoder layer) of one optimizer step."""
    trainer = build_trainer(place, spec)
    model = trainer.engine.engine.module.model
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = model.get_decoder().layers
    calls: list[int] = []
    for number, layer in enumerate(layers):
        layer.input_layernorm.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
    trainer.update(0)
    micro_batches = len(trainer.train.micro_batches(trainer.order.examples(0)))
    return micro_batches, [calls.count(number) for number in range(len(layers))]


class Gathers(NamedTuple):
    """One step under ZeRO-3: its micro-batches, how often a rank asked for the head's weights, and for any weight."""

    micro_batches: int
    head: int
    all: int


def count_gathers(place: Place, spec: TrainSpec, steps: int) -> tuple[int, list[Gathers]]:
    """(number of weights, the gathers of each step). Small weights are sharded, too, which DeepSpeed would keep whole."""
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator as Coordinator

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deepspeed_engine, "deepspeed_config", _sharding_all(deepspeed_engine.deepspeed_config))
        trainer = build_trainer(place, spec)
        gathered: list[Any] = []
        name = "_PartitionedParameterCoordinator__all_gather_params"
        honest = getattr(Coordinator, name)

        def gather(self: Any, parameters: Any, *args: Any) -> None:
            parameters = list(parameters)
            gathered.extend(parameters)
            honest(self, parameters, *args)

        patch.setattr(Coordinator, name, gather)
        head, found = trainer.engine.engine.module.head.weight, []
        for step in range(steps):
            gathered.clear()
            trainer.update(step)
            micro_batches = len(trainer.train.micro_batches(trainer.order.examples(step)))
            found.append(Gathers(micro_batches, sum(weight is head for weight in gathered), len(gathered)))
        return len(list(trainer.engine.engine.module.parameters())), found


def _sharding_all(honest: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def config(*args: Any, **options: Any) -> dict[str, Any]:
        found = honest(*args, **options)
        found["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return found

    return config


def balanced_step(place: Place, spec: TrainSpec, num_steps: int) -> list[dict[str, float]]:
    """Metrics of the first steps of a training, as `update` gives them."""
    trainer = build_trainer(place, spec)
    found = [trainer.update(step)[1] for step in range(num_steps)]
    trainer.close()
    return found
