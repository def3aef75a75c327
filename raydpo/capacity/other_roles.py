"""Bytes of the roles beside the trainers: reference workers, generators, what a checkpoint takes in main memory, and the disk.

Comes in: counts of weights, what a forward costs, and the sections of the config. Goes out: parts in bytes.
Decision: a generator holds the whole model, a reference worker the whole or one layer at a time as `reference.weights` says;
nothing is said of a judge, which may be any program.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from raydpo.capacity.lengths import Lengths
from raydpo.capacity.skeleton import Skeleton
from raydpo.capacity.traced import Traced
from raydpo.capacity.zero_bytes import MASTER, MOMENTS, ZeroRank
from raydpo.config import Config
from raydpo.driver.disk_room import cache_bytes, need_of
from raydpo.models.logprobs import CHUNK_TOKENS
from raydpo.models.shard_files import SHARD_BYTES
from raydpo.models.trained_size import TrainedSize
from raydpo.reference.way import USED_SHARE
from raydpo.rundir.workspace import Workspace

TOKEN_BYTES = 4
"""Of a token in the shards of `run.dir`."""


def reference_parts(
    skeleton: Skeleton, traced: Traced, lengths: Lengths, config: Config, dtype_bytes: int
) -> dict[str, float]:
    """Of one reference worker that holds the whole reference."""
    tokens = max(config.reference.tokens_per_batch, lengths.longest_example(traced.layout))
    answers = min(CHUNK_TOKENS, tokens * lengths.answer_share(traced.layout))
    return {
        "weights": float(dtype_bytes * skeleton.base),
        "activations": tokens * traced.forward,
        "logits": answers * traced.forward_head,
    }


def streams(skeleton: Skeleton, config: Config, dtype_bytes: int, room: float | None, *, is_packed: bool) -> bool:
    """Whether a reference worker holds one layer at a time. room: bytes of its device, where they are known. is_packed: in 4
    bits."""
    if config.reference.weights != "auto":
        return config.reference.weights == "streamed"
    return not is_packed and room is not None and dtype_bytes * skeleton.base > USED_SHARE * room


def streamed_parts(
    whole: Mapping[str, float], skeleton: Skeleton, config: Config, dtype_bytes: int
) -> dict[str, float]:
    """The same reference one layer at a time, with the hidden states of a pass. whole: of `reference_parts`; activations
    are those of the layers, one after the other, in either way."""
    states = 2 * skeleton.hidden * dtype_bytes * config.reference.stream_tokens
    return {
        **whole,
        "weights": float(dtype_bytes * (skeleton.outside + skeleton.layer)),
        "hidden states": float(states),
    }


def generator_parts(
    skeleton: Skeleton, lengths: Lengths, config: Config, dtype_bytes: int, device_bytes: int | None
) -> dict[str, float]:
    """Of one generator, on each of its GPUs. Transformers: keys and values of one batch of prompts; vLLM: what is left of its
    share of the GPU (`generate.vllm.gpu_memory_utilization`)."""
    section = config.generate
    weights = dtype_bytes * skeleton.base / max(1.0, section.gpus_per_worker)
    rows = section.prompts_per_item * section.num_answers
    cached = rows * (lengths.prompt + section.max_new_tokens) * skeleton.key_value_numbers * dtype_bytes
    if section.engine == "vllm" and section.gpus_per_worker and device_bytes is not None:
        cached = max(
            0.0, section.vllm.gpu_memory_utilization * device_bytes * min(1.0, section.gpus_per_worker) - weights
        )
    return {"weights": weights, "keys and values": cached}


def staging_parts(rank: ZeroRank, exported: int, has_state: bool, max_bytes: int = SHARD_BYTES) -> dict[str, float]:
    """Copies in main memory while a checkpoint is written: a rank's part of the state, and the first rank's `model/`, of which
    it holds a tensor at a time where that is larger than a file and no adapter."""
    state = (MASTER + MOMENTS) * rank.share if has_state else 0.0
    is_whole = exported == rank.trained + rank.frozen
    held = rank.largest if is_whole and rank.dtype_bytes * exported > max_bytes else exported
    return {"state": state, "model of the first rank": float(rank.dtype_bytes * held)}


def loading_bytes(rank: ZeroRank) -> float:
    """Main memory of a rank while it loads: the whole model in the compute dtype until its device has it; under stage 3 its
    part, and the largest tensor."""
    whole = rank.dtype_bytes * (rank.trained + rank.frozen)
    return whole / rank.num_ranks + rank.dtype_bytes * rank.largest if rank.stage == 3 else float(whole)


def disk_parts(workspace: Workspace, skeleton: Skeleton, lengths: Lengths, num_steps: int) -> dict[str, float]:
    """The most that lies on disk at one time."""
    lora = workspace.config.train.lora
    exported = skeleton.total if lora is None else skeleton.trained
    size = TrainedSize(skeleton.base, skeleton.trained, exported)
    need = need_of(workspace, size, num_steps, has_eval=lengths.held_out > 0)
    examples, answers = lengths.examples + lengths.held_out, lengths.num_answers
    rows = examples * answers if workspace.needs_reference else 0
    shards = -(-rows // workspace.config.reference.rows_per_shard)
    tokens = examples * (lengths.prompt + answers * lengths.answer)
    return {
        f"checkpoints ({need.num_checkpoints})": float(need.checkpoints),
        "model": float(need.model + need.merged),
        "references": float(need.references),
        "reference cache": float(cache_bytes(rows, round(rows * lengths.answer), shards)),
        "token shards": TOKEN_BYTES * tokens,
    }


def streaming_notes(roles: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """What a reference that does not fit whole would take by layers."""
    for role in roles:
        if needed := role.get("streamed_bytes"):
            fits = "fits" if needed <= role["room"] else "does not fit, either"
            yield (
                f"the reference does not fit whole; one layer at a time it takes {needed / 1e9:,.1f} GB and {fits} "
                "(reference.weights: auto or streamed)"
            )


def role_row(role: str, place: str, where: str, parts: Mapping[str, float], room: float | None) -> dict[str, Any]:
    """A role as the plan shows it. place: GPU or main memory; where: who has it, in words; room: bytes that it may have."""
    total = sum(parts.values())
    fits = None if room is None else total <= room
    return {
        "role": role,
        "place": place,
        "what": where,
        "parts": dict(parts),
        "bytes": total,
        "room": room,
        "fits": fits,
    }
