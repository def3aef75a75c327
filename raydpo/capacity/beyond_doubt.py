"""Refuse, before anything is started, a training that cannot fit: what is never freed is more than there is.

Comes in: a workspace and the room of this machine. Goes out: nothing, a warning, or a ResourceError with the arithmetic and
the smallest change. Decision: weights, master weights and optimizer state alone count, by the heads of the weight files;
activations are an estimate and refuse nothing. On a cluster the nodes' memory is not known, and nothing is said.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from typing import Any

from raydpo.capacity.machine_room import Room, room_here
from raydpo.capacity.zero_bytes import ZeroRank, bucket, gradients, masters, moments, weights
from raydpo.config.sections import TrainSection
from raydpo.disk import sized
from raydpo.errors import ResourceError
from raydpo.models.matrix_kinds import EMBEDDING, HEAD, kind_of_matrix
from raydpo.models.trained_size import TrainedSize, size_of_full, size_of_lora
from raydpo.models.weight_shapes import shapes_of_model
from raydpo.rundir.workspace import Workspace
from raydpo.schema.events import Note, Observer
from raydpo.train.deepspeed_settings import stage_of

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
_UNPACKED = (EMBEDDING, HEAD)
_LORA: dict[str, Any] = {"rank": 16, "target_modules": "all-linear"}


def check_memory(workspace: Workspace, observer: Observer, room: Room | None = None) -> None:
    """Raise ResourceError where a rank of this training cannot fit; say it where only its gradients may not.

    room: of each machine; default: of this one, unless the run is on a cluster.
    """
    if room is None and workspace.config.run.runtime == "ray" and os.environ.get("RAY_ADDRESS"):
        return
    shapes, train = shapes_of_model(workspace.trained_from.whole().folder), workspace.config.train
    if shapes is None or (workspace.dir / "model").exists():  # of a run that is over, nothing is loaded
        return
    lora, room = train.lora, room or room_here()
    size = size_of_full(shapes) if lora is None else size_of_lora(shapes, **lora.placed())
    num_ranks, there = train.ranks[0], _there(train, room)
    if there is None:
        return
    rank = _rank(train, size, workspace.dtype, num_ranks, _packed(train, shapes))
    if (needed := _held(train, rank)) > there:
        kind = "of each GPU" if train.gpus_per_worker else f"for each of {num_ranks} ranks of this machine"
        raise ResourceError(
            f"train: a rank holds {_terms(train, rank)}, {sized(int(needed))}, and the memory {kind} is {sized(int(there))}. "
            "It would have ended while it was loaded or at the first step, so nothing was started. "
            f"{_advice(workspace, rank, shapes, there, room)}"
        )
    if (likely := needed + _passing(train, rank)) > there:
        text = f"a rank will need more than {sized(int(likely))} with gradients, and has {sized(int(there))}: see raydpo plan"
        observer(Note("warning", text))


def _there(train: TrainSection, room: Room) -> float | None:
    if train.gpus_per_worker:
        return room.device_bytes
    return room.host_bytes / train.ranks[0]


def _packed(train: TrainSection, shapes: Mapping[str, Any]) -> int:
    """Weights that are packed in 4 bits, or may be: every matrix but embeddings and heads."""
    if train.lora is None or train.lora.quantize_base == "none":
        return 0
    matrices = (shape for name, shape in shapes.items() if len(shape) == 2 and kind_of_matrix(name) not in _UNPACKED)
    return sum(map(prod, matrices))


def _rank(train: TrainSection, size: TrainedSize, dtype: str, num_ranks: int, packed: int) -> ZeroRank:
    trained = size.trained
    frozen = size.model - trained if train.lora is None else size.model
    return ZeroRank(
        stage=stage_of(train, dtype),
        num_ranks=num_ranks,
        dtype_bytes=_DTYPE_BYTES[dtype],
        trained=trained,
        frozen=frozen,
        largest=0,
        head=0,
        is_tied=False,
        bucket=0,
        packed=packed,
        offload_optimizer=train.offload_optimizer,
        offload_parameters=train.offload_parameters,
    )


def _on_gpu(train: TrainSection, rank: ZeroRank) -> tuple[bool, bool]:
    """Whether (weights, what is updated) are where the rank's memory is counted."""
    is_gpu = train.gpus_per_worker > 0
    return not (is_gpu and rank.offload_parameters), not (is_gpu and rank.offload_optimizer)


def _held(train: TrainSection, rank: ZeroRank) -> float:
    has_weights, has_state = _on_gpu(train, rank)
    return weights(rank) * has_weights + (masters(rank) + moments(rank)) * has_state


def _offloaded(train: TrainSection, rank: ZeroRank, room: Room) -> tuple[float, float]:
    """Bytes that a rank keeps in main memory beside a GPU, and those that it may have there."""
    has_weights, has_state = _on_gpu(train, rank)
    kept = weights(rank) * (not has_weights) + (masters(rank) + moments(rank)) * (not has_state)
    return kept, room.host_bytes / max(1, min(rank.num_ranks, room.num_devices))


def _passing(train: TrainSection, rank: ZeroRank) -> float:
    return gradients(rank) * _on_gpu(train, rank)[1] + bucket(rank)


def _terms(train: TrainSection, rank: ZeroRank) -> str:
    has_weights, has_state = _on_gpu(train, rank)
    found = [f"weights {sized(int(weights(rank)))}"] if has_weights else []
    if has_state:
        found += [f"master weights {sized(int(masters(rank)))}"] if rank.stage else []
        found += [f"optimizer state {sized(int(moments(rank)))}"]
    return " + ".join(found)


def _advice(workspace: Workspace, rank: ZeroRank, shapes: Mapping[str, Any], there: float, room: Room) -> str:
    """The smallest change after which a rank fits."""
    train = workspace.config.train
    for said, changed, other in _candidates(train, rank, shapes):
        kept, host = _offloaded(changed, other, room)
        is_refused = other.stage == 3 and (train.compile or rank.packed)
        if _held(changed, other) <= there and kept <= host and not is_refused:
            return f"Smallest change that helps: {said}. raydpo plan shows each part."
    return (
        "No stage, offload or adapter makes it fit on as many ranks: take more or larger devices, or a smaller model."
    )


def _candidates(
    train: TrainSection, rank: ZeroRank, shapes: Mapping[str, Any]
) -> Iterator[tuple[str, TrainSection, ZeroRank]]:
    for stage in (1, 2, 3):
        if stage > rank.stage:
            yield f"train.zero_stage: {stage}", train, replace(rank, stage=stage)
    if train.gpus_per_worker:
        stage = max(2, rank.stage)
        said = f"train.zero_stage: {stage} with train.offload_optimizer: true"
        yield said, train, replace(rank, stage=stage, offload_optimizer=True)
        more = replace(rank, stage=3, offload_optimizer=True, offload_parameters=True)
        yield "train.zero_stage: 3 with train.offload_optimizer: true and train.offload_parameters: true", train, more
        for number in (2, 4, 8, 16, 32, 64):
            if number > rank.num_ranks:
                yield (
                    f"train.num_workers: {number} with train.zero_stage: 3",
                    train,
                    replace(rank, stage=3, num_ranks=number),
                )
    if train.lora is None:
        size = size_of_lora(shapes, **_LORA)
        yield "train.lora: {rank: 16}", train, replace(rank, trained=size.trained, frozen=size.model)
