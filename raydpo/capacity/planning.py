"""`raydpo plan`: everything of a run in bytes and seconds, before anything of it is started.

Comes in: a config, and what is known or stated of machine and data. Goes out: a dict of plain values, for `plan_page`.
Decision: no weight is loaded or downloaded, no worker is started; every coefficient stands in the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from raydpo.batches.order import Order
from raydpo.capacity import zero_bytes as coefficients
from raydpo.capacity.lengths import Lengths, from_report, stated
from raydpo.capacity.machine_room import USABLE_SHARE, Room
from raydpo.capacity.other_roles import (
    disk_parts,
    generator_parts,
    loading_bytes,
    reference_parts,
    role_row,
    staging_parts,
    streamed_parts,
    streaming_notes,
    streams,
)
from raydpo.capacity.skeleton import Skeleton, skeleton_of
from raydpo.capacity.sought import (
    DTYPE_BYTES,
    Change,
    Need,
    Trainee,
    adapter_of,
    changes,
    largest_budget,
    need,
    rank_of,
)
from raydpo.capacity.step_time import CPU_CORE, GPU, Speed, reference_s, step_s
from raydpo.capacity.traced import trace
from raydpo.capacity.trainer_bytes import on_device, on_host
from raydpo.capacity.zero_bytes import bucket_at
from raydpo.config import Config
from raydpo.config.sections import LoraSection
from raydpo.disk import free_bytes
from raydpo.driver.data_stage import shown_data
from raydpo.errors import ConfigError
from raydpo.rundir.workspace import Workspace, find_workspace
from raydpo.schema.events import Observer, ignore

MOST_RANKS = 128


@dataclass(frozen=True)
class Question:
    """room: of each machine. speed: of each device, None: the default of its kind. tokens: of a mean prompt and of a mean
    answer, and the number of examples; None: the data are read."""

    room: Room
    speed: Speed | None = None
    tokens: tuple[int, int, int] | None = None


def plan_run(config: Config, asked: Question, observer: Observer = ignore) -> dict[str, Any]:
    """The plan of a training, with its reference and, where the config has rounds, its generators. Raises ConfigError."""
    workspace = find_workspace(config, "check")
    config, lengths = workspace.config, _lengths(workspace, asked, observer)
    folder, attention = workspace.trained_from.whole().folder, config.model.attention
    lora = None if config.train.lora is None else config.train.lora.placed()
    skeleton = skeleton_of(folder, lora)
    longest = lengths.longest_example("packed")
    shape: dict[str, Any] = {"attention": attention, "num_answers": lengths.num_answers, "length": longest}
    shape |= {"num_layers": skeleton.num_layers, "num_sharing": config.train.sequence_parallel_size}
    traced = trace(folder, dtype=workspace.dtype, lora=lora, **shape)
    run = _Run(workspace, asked, lengths, Trainee(skeleton, traced, lengths, workspace.dtype))
    return run.found()


def _lengths(workspace: Workspace, asked: Question, observer: Observer) -> Lengths:
    num_answers = workspace.config.objective.row.num_answers
    if asked.tokens is not None:
        return stated(workspace.config.data, num_answers, *asked.tokens)
    report, _ = shown_data(workspace, observer, 0)
    if not report.pairs_used:
        raise ConfigError(
            "data.train: no example is left after the checks, so nothing is known of lengths and nothing was planned. Name "
            "data, or say --prompt-tokens, --answer-tokens and --examples."
        )
    return from_report(report, num_answers)


@dataclass(frozen=True)
class _Run:
    workspace: Workspace
    asked: Question
    lengths: Lengths
    trainee: Trainee

    @property
    def config(self) -> Config:
        return self.workspace.config

    @property
    def num_ranks(self) -> int:
        return self.config.train.ranks[0]

    @property
    def on_gpu(self) -> bool:
        return self.config.train.gpus_per_worker > 0

    def ranks_here(self, num_ranks: int) -> int:
        """Of so many ranks, those of one machine."""
        return min(num_ranks, self.asked.room.num_devices or num_ranks) if self.on_gpu else num_ranks

    def host_room(self, num_ranks: int) -> float:
        """Bytes of main memory that one of so many ranks may have."""
        return USABLE_SHARE * self.asked.room.host_bytes / self.ranks_here(num_ranks)

    def host_bytes(self, need: Need) -> float:
        """Bytes that a rank on a GPU keeps in main memory."""
        return sum(on_host(need.rank, need.parts).values()) if self.on_gpu else 0.0

    @property
    def room_of_rank(self) -> float | None:
        """Bytes that one rank may have where its weights are; None where that is not known."""
        room = self.asked.room
        if self.on_gpu:
            return None if room.device_bytes is None else USABLE_SHARE * room.device_bytes
        return self.host_room(self.num_ranks)

    def size(self, need: Need) -> float:
        """Bytes of a rank that `room_of_rank` is compared with."""
        return need.device if self.on_gpu else need.total

    def fits(self, need: Need) -> bool | None:
        """Whether a rank has room, in main memory, too, for what it offloads; None where the device is not known."""
        room = self.room_of_rank
        if room is None:
            return None
        return self.size(need) <= room and self.host_bytes(need) <= self.host_room(need.rank.num_ranks)

    def found(self) -> dict[str, Any]:
        train, skeleton, room = self.config.train, self.trainee.skeleton, self.room_of_rank
        trained = need(self.trainee, train, self.num_ranks)
        budget = None if room is None or self.trainee.traced.why else self._largest(room)
        steps = Order.of(self.config, max(1, self.lengths.examples)).num_steps
        disk, roles = disk_parts(self.workspace, skeleton, self.lengths, steps), list(self._roles(trained))
        return {
            "run_dir": self.workspace.place,
            "machine": asdict(self.asked.room),
            "model": {
                "weights": skeleton.base,
                "trained": skeleton.trained,
                "by_kind": dict(skeleton.by_kind),
                "layers": skeleton.num_layers,
                "dtype": self.trainee.dtype,
            },
            "data": {**asdict(self.lengths), "layout": self.trainee.traced.layout, "steps": steps},
            "roles": roles,
            "disk": {"parts": disk, "bytes": sum(disk.values()), "free": free_bytes(self.workspace.dir)},
            "time": self._time(trained, steps),
            "micro_batch": {"tokens": trained.load.tokens, "recomputed_layers": trained.load.layers, "largest": budget},
            "bucket_bytes": bucket_at(trained.rank, trained.moment),
            "fits": self.fits(trained),
            "changes": [self._said(change) for change in self._changes(budget) if self._helps(change, trained)],
            "coefficients": self._coefficients(),
            "notes": [*streaming_notes(roles), *self._notes(trained)],
        }

    def _roles(self, trained: Need) -> Iterator[dict[str, Any]]:
        train, room, rank = self.config.train, self.room_of_rank, trained.rank
        host_room = self.host_room(self.num_ranks)
        parts = on_device(rank, trained.parts) if self.on_gpu else trained.parts
        groups = f" in groups of {size} that share sequences" if (size := train.sequence_parallel_size) > 1 else ""
        where = f"{self.num_ranks} ranks{groups}, ZeRO {rank.stage}, peak at the {trained.moment}"
        yield role_row("train", "GPU" if self.on_gpu else "main memory", where, parts, room)
        exported = rank.trained if train.lora is not None else rank.trained + rank.frozen
        host = on_host(rank, trained.parts) if self.on_gpu else {}
        staged = staging_parts(rank, exported, train.save == "all", train.max_shard_bytes)
        yield role_row("checkpoint", "main memory", "each rank, while one is written", {**host, **staged}, host_room)
        yield role_row("start", "main memory", "each rank, while it loads", {"weights": loading_bytes(rank)}, host_room)
        if self.workspace.needs_reference and self.config.reference.weights != "trainers":
            yield self._reference()
        if self.config.rounds is not None:
            yield self._generators()

    def _reference(self) -> dict[str, Any]:
        section, measured = self.config.reference, self.workspace.measured_by
        same = measured.whole().folder == self.workspace.trained_from.whole().folder
        skeleton = self.trainee.skeleton if same else skeleton_of(measured.whole().folder)
        dtype_bytes = DTYPE_BYTES[self.trainee.dtype]
        whole = reference_parts(skeleton, self.trainee.traced, self.lengths, self.config, dtype_bytes)
        by_layer = streamed_parts(whole, skeleton, self.config, dtype_bytes)
        room, is_packed = self._room_of(section.workers[0], section.gpus_per_worker), measured.four_bit is not None
        is_streamed = streams(skeleton, self.config, dtype_bytes, room, is_packed=is_packed)
        how, parts = ("one layer at a time in each", by_layer) if is_streamed else ("the whole model in each", whole)
        role = self._serving("reference", section.workers[0], section.gpus_per_worker, parts, how)
        if not is_streamed and not is_packed and role["fits"] is False:
            role["streamed_bytes"] = sum(by_layer.values())
        return role

    def _generators(self) -> dict[str, Any]:
        section, device = self.config.generate, self.asked.room.device_bytes
        dtype_bytes = DTYPE_BYTES[self.trainee.dtype]
        parts = generator_parts(self.trainee.skeleton, self.lengths, self.config, dtype_bytes, device)
        return self._serving("generate", section.num_workers, section.gpus_per_worker, parts)

    def _room_of(self, workers: int, gpus: float) -> float | None:
        """Bytes that one of so many workers may have."""
        room = self.asked.room
        if gpus > 0:
            return None if room.device_bytes is None else USABLE_SHARE * room.device_bytes * min(1.0, gpus)
        return USABLE_SHARE * room.host_bytes / workers

    def _serving(
        self, role: str, workers: int, gpus: float, parts: Mapping[str, float], how: str = "the whole model in each"
    ) -> dict[str, Any]:
        place = "GPU" if gpus > 0 else "main memory"
        return role_row(role, place, f"{workers} workers, {how}", parts, self._room_of(workers, gpus))

    def _speed(self, gpus: float, cpus: float) -> Speed:
        if self.asked.speed is not None:
            return self.asked.speed
        return GPU if gpus > 0 else replace(CPU_CORE, flops=CPU_CORE.flops * cpus)

    def _time(self, trained: Need, steps: int) -> dict[str, Any]:
        train, reference, load = self.config.train, self.config.reference, trained.load
        work, layout = self.trainee.skeleton.work, self.trainee.traced.layout
        micro = self.lengths.num_micro_batches(train, self.num_ranks, layout)
        share = load.layers / max(1, load.cost.num_layers)
        speed = self._speed(train.gpus_per_worker, train.cpus_per_worker)
        pairs = train.global_batch_pairs
        of_group = pairs * train.sequence_parallel_size / self.num_ranks * self.lengths.example(layout)
        exchanged = self.trainee.traced.sent * of_group
        parts = step_s(work, self.lengths, layout, pairs, trained.rank, micro, share, speed, exchanged)
        found: dict[str, Any] = {
            "step_s": sum(parts.values()),
            "parts_s": parts,
            "training_s": sum(parts.values()) * steps,
        }
        if self.workspace.needs_reference:
            scoring = self._speed(reference.gpus_per_worker, reference.cpus_per_worker)
            found["reference_s"] = reference_s(work, self.lengths, layout, reference.workers[0], scoring)
        return found

    def _largest(self, room: float) -> int:
        return largest_budget(self.trainee, self.config.train, self.num_ranks, room, self.size)

    def _changes(self, budget: int | None) -> Iterator[Change]:
        """budget: the largest that fits."""
        train, most = self.config.train, MOST_RANKS if self.on_gpu else self.num_ranks
        if budget and budget < train.tokens_per_microbatch:
            smaller = train.model_copy(update={"tokens_per_microbatch": budget})
            yield Change({"train.tokens_per_microbatch": budget}, need(self.trainee, smaller, self.num_ranks))
        yield from changes(self.trainee, self._adapted, train, self.num_ranks, most)

    def _adapted(self) -> Trainee:
        lora = LoraSection().placed()
        skeleton: Skeleton = skeleton_of(self.workspace.trained_from.whole().folder, lora)
        return adapter_of(self.trainee, skeleton)

    def _helps(self, change: Change, now: Need) -> bool:
        return self.size(change.need) < self.size(now) or (self.fits(now) is False and self.fits(change.need) is True)

    def _said(self, change: Change) -> dict[str, Any]:
        return {
            "keys": dict(change.keys),
            "said": change.said,
            "bytes": self.size(change.need),
            "host_bytes": self.host_bytes(change.need),
            "fits": self.fits(change.need),
        }

    def _coefficients(self) -> dict[str, Any]:
        train, reference = self.config.train, self.config.reference
        return {
            "usable_share_of_memory": USABLE_SHARE,
            "master_bytes": coefficients.MASTER,
            "optimizer_bytes": coefficients.MOMENTS,
            "accumulated_gradient_bytes": coefficients.ACCUMULATED,
            "packed_weight_bytes": coefficients.PACKED,
            "reduce_bucket_numbers": rank_of(self.trainee, train, self.num_ranks).bucket,
            "live_weights_of_stage_3": coefficients.LIVE_NUMBERS,
            "activation_bytes_per_token": self.trainee.traced.training.kept,
            "activation_bytes_per_token_recomputed": self.trainee.traced.training.kept_again,
            "logit_bytes_per_answer_token": self.trainee.traced.training.head,
            "train": asdict(self._speed(train.gpus_per_worker, train.cpus_per_worker)),
            "reference": asdict(self._speed(reference.gpus_per_worker, reference.cpus_per_worker)),
        }

    def _notes(self, trained: Need) -> Iterator[str]:
        if why := self.trainee.traced.why:
            yield f"activations are not in it: they could not be traced without weights ({why})"
        if self.room_of_rank is None:
            yield "no GPU is known here: say --device-gb and --num-devices to hear whether it fits"
        if trained.load.tokens > self.config.train.tokens_per_microbatch:
            yield f"the longest example has {trained.load.tokens:,} tokens, more than train.tokens_per_microbatch"
        if self.on_gpu:
            yield "attention is counted as on a CPU, one call a segment; kernels of a GPU keep as much or less"
        if self.config.reference.weights == "trainers":
            yield "the trainers score the reference, so no worker holds it (reference.weights: trainers)"
        if (size := self.config.train.sequence_parallel_size) > 1:
            yield f"a micro-batch is one of {size} ranks together; bytes are of one of them, a token of the micro-batch each"
        if self.config.judge is not None:
            yield "judges are not in it"
        yield "not there yet, so not among the changes: tensor parallelism"
