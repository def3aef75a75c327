"""The bytes of a training under other settings: the largest token budget that fits, and what would make a run fit.

Comes in: what a model costs, and the room of a device. Goes out: tokens, and changes of the config, the smallest first.
Decision: changes are tried one by one and a few together, in the order of what they cost in time; each is a whole calculation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from raydpo.capacity.lengths import Lengths
from raydpo.capacity.skeleton import Skeleton
from raydpo.capacity.traced import Traced
from raydpo.capacity.trainer_bytes import Load, on_device, peak
from raydpo.capacity.zero_bytes import Moment, ZeroRank
from raydpo.config.sections import TrainSection
from raydpo.models.wide_logits import BLOCK_BYTES
from raydpo.train.deepspeed_settings import deepspeed_config, stage_of

_MOST_TOKENS = 2**24
DTYPE_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Trainee:
    """What is trained, apart from the keys of `train`. skeleton, traced: of the model with its adapter, if it has one."""

    skeleton: Skeleton
    traced: Traced
    lengths: Lengths
    dtype: str


@dataclass(frozen=True)
class Need:
    """rank: whose. load: its fullest micro-batch. moment, parts: where most lives, on a GPU and in main memory together."""

    rank: ZeroRank
    load: Load
    moment: Moment
    parts: Mapping[str, float]

    @property
    def device(self) -> float:
        """Bytes on the GPU."""
        return sum(on_device(self.rank, self.parts).values())

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def need(trainee: Trainee, train: TrainSection, num_ranks: int) -> Need:
    """Of one rank at its peak."""
    rank, load = rank_of(trainee, train, num_ranks), load_of(trainee, train, num_ranks)
    return Need(rank, load, *peak(rank, load))


def rank_of(trainee: Trainee, train: TrainSection, num_ranks: int) -> ZeroRank:
    """What the keys of `train` make of a rank."""
    skeleton, layout = trainee.skeleton, trainee.traced.layout
    stage, on_gpu = stage_of(train, trainee.dtype), train.gpus_per_worker > 0
    settings = deepspeed_config(train, trainee.dtype, num_ranks, use_gpu=on_gpu, sizes=skeleton.sizes)
    zero = settings["zero_optimization"]
    return ZeroRank(
        stage=stage,
        num_ranks=num_ranks,
        dtype_bytes=DTYPE_BYTES[trainee.dtype],
        trained=skeleton.trained,
        frozen=skeleton.frozen,
        largest=skeleton.largest,
        head=skeleton.head,
        is_tied=skeleton.is_tied,
        packed=skeleton.linear if train.lora is not None and train.lora.quantize_base != "none" else 0,
        bucket=int(zero["reduce_bucket_size"]) if stage else 0,
        overlaps=bool(zero.get("overlap_comm")),
        on_gpu=on_gpu,
        offload_optimizer=train.offload_optimizer,
        offload_parameters=train.offload_parameters,
        accumulates=trainee.lengths.num_micro_batches(train, num_ranks, layout) > 1,
    )


def load_of(trainee: Trainee, train: TrainSection, num_ranks: int) -> Load:
    """The fullest micro-batch of a rank, or of ranks that share it, with as many layers recomputed as the config asks for."""
    lengths, cost = trainee.lengths, trainee.traced.training
    tokens = lengths.micro_batch(train, num_ranks, trainee.traced.layout)
    layers = cost.num_layers if train.gradient_checkpointing else 0
    if train.activation_memory_gb is not None:
        layers, tokens = cost.choose(train.activation_memory_gb * 1e9, tokens)
    layout, num_sharing = trainee.traced.layout, train.sequence_parallel_size
    answers = lengths.answers_of_rank(tokens, num_sharing, layout)
    of_all = train.tokens_per_microbatch if train.zero_stage == 3 else lengths.answers_of_rank(tokens, 1, layout)
    least = -(-of_all // cost.chunk_tokens)
    is_widened = trainee.dtype != "float32" and not train.gpus_per_worker
    widened = min(BLOCK_BYTES, 4 * trainee.skeleton.vocabulary * trainee.skeleton.hidden) if is_widened else 0
    return Load(tokens, answers, layers, cost, least, widened)


def largest_budget(
    trainee: Trainee, train: TrainSection, num_ranks: int, room: float, size: Callable[[Need], float]
) -> int:
    """The most train.tokens_per_microbatch that fits into `room` bytes; 0 where the longest example does not."""

    def fits(tokens: int) -> bool:
        changed = train.model_copy(update={"tokens_per_microbatch": tokens, "global_batch_pairs": _MOST_TOKENS})
        return size(need(trainee, changed, num_ranks)) <= room

    low, high = 0, _MOST_TOKENS
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


@dataclass(frozen=True)
class Change:
    """keys: of the config, and what they become. need: afterwards."""

    keys: Mapping[str, Any]
    need: Need

    @property
    def said(self) -> str:
        return ", ".join(f"{key}: {_plain(value)}" for key, value in self.keys.items() if value is not None)


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def changes(
    trainee: Trainee, adapted: Callable[[], Trainee], train: TrainSection, num_ranks: int, most_ranks: int
) -> Iterator[Change]:
    """What could make a training smaller, in the order of what it costs. adapted: the same training of an adapter."""
    for keys in _settings(train):
        if all(getattr(train, key) == value for key, value in keys.items()) or any(_with(train, keys).clashes()):
            continue
        yield Change(
            {f"train.{key}": value for key, value in keys.items()}, need(trainee, _with(train, keys), num_ranks)
        )
    sharded = {"zero_stage": 3, "gradient_checkpointing": True, "activation_memory_gb": None}
    for more in (number for number in (2, 4, 8, 16, 32, 64, 128) if num_ranks < number <= most_ranks):
        if more % train.sequence_parallel_size:
            continue
        changed = _with(train, sharded)
        if not any(changed.clashes()):
            named = {"train.num_workers": more, **{f"train.{key}": value for key, value in sharded.items()}}
            yield Change(named, need(trainee, changed, more))
    if train.lora is None:
        small = {"gradient_checkpointing": True}
        yield Change({"train.lora.rank": 16}, need(adapted(), train, num_ranks))
        yield Change(
            {"train.lora.rank": 16, "train.gradient_checkpointing": True},
            need(adapted(), _with(train, small), num_ranks),
        )


def _settings(train: TrainSection) -> Iterator[dict[str, Any]]:
    """Of one number of ranks, the cheapest first."""
    halved = {"tokens_per_microbatch": max(1, train.tokens_per_microbatch // 2)}
    again: dict[str, Any] = {"gradient_checkpointing": True}
    again["activation_memory_gb"] = None
    stages = [stage for stage in (1, 2, 3) if stage > train.zero_stage]
    yield halved
    yield from ({"zero_stage": stage} for stage in stages)
    yield again
    yield {**again, **halved}
    top = max(train.zero_stage, 2)
    yield from ({"zero_stage": stage, **again} for stage in stages)
    yield {"zero_stage": top, "offload_optimizer": True}
    yield {"zero_stage": top, "offload_optimizer": True, **again}
    yield {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True}
    yield {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True, **again}


def _with(train: TrainSection, keys: Mapping[str, Any]) -> TrainSection:
    return train.model_copy(update=dict(keys))


def adapter_of(trainee: Trainee, skeleton: Skeleton) -> Trainee:
    """The same training of an adapter, whose activations are taken to cost what those of all weights do."""
    return replace(trainee, skeleton=skeleton)
