"""Whether roles beside the trainers may stand over all rounds, or have to be started for each of their turns.

Comes in: a config of rounds, the initial model, the models of the judge. Goes out: why a role cannot stand, as a clause, empty
where it can. Decision: on CPUs all models of a run are held at once where that fits into the main memory that is free now, by
the heads of the weight files; what holds a GPU, or a custom resource, gives it back after its turn, because trainers wait for
it. Price: on a cluster the memory of this machine stands for that of every node.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from raydpo import runtime
from raydpo.config import Config
from raydpo.models.resolve import ResolvedModel
from raydpo.reference.way import USED_SHARE, free_bytes, whole_bytes

TRAINED_BYTES = 20
"""A weight of a full training, at most, on one rank: weight, gradient, master weight and two moments."""
ENGINE_BYTES = 2_000_000_000
"""Of an engine of its own beside its weights, such as vLLM's keys and values on a CPU."""
_GB = 1e9


@dataclass(frozen=True)
class RoomToStand:
    """trainers, reference, judge, scorer: why trainers, reference workers, judges with models, and models that score held-out
    answers end after each turn, as clauses; empty where they stand."""

    trainers: str
    reference: str
    judge: str
    scorer: str


def room_to_stand(
    config: Config, initial: ResolvedModel, dtype: str, judged_by: Collection[ResolvedModel]
) -> RoomToStand:
    """In a session. judged_by: models that each of the judge's actors loads; without one they stand, unless on a GPU."""
    memory = _memory(config, initial, dtype, judged_by)
    reference, judge, generate = config.reference, config.judge, config.generate
    is_range = reference.workers[0] != reference.workers[1]
    ranged = "reference.num_workers is a range, of which as many begin as there is room for" if is_range else ""
    of_judge = memory if judged_by else ""
    return RoomToStand(
        _trainers(config) or memory,
        _held("reference", reference.gpus_per_worker, reference.scheduling.resources) or ranged or memory,
        ""
        if judge is None
        else _held("judge", judge.gpus_per_worker, judged_by and judge.scheduling.resources) or of_judge,
        _held("generate", generate.gpus_per_worker, generate.scheduling.resources) or memory,
    )


def _held(role: str, gpus: float, resources: object) -> str:
    if gpus:
        return f"trainers wait for the GPUs of {role}"
    return f"others may wait for {role}.scheduling.resources" if resources else ""


def _trainers(config: Config) -> str:
    """On GPUs they stand where they share none: in `split`, if every other role, and the proof of an export, has its own."""
    train, rounds, reference, generate = config.train, config.rounds, config.reference, config.generate
    if train.scheduling.resources:
        return "others may wait for train.scheduling.resources"
    if not train.gpus_per_worker:
        return ""
    if rounds is None or rounds.placement != "split":
        return "generators wait for the GPUs of train"
    needed = (train.ranks[1] + train.verify_export) * train.gpus_per_worker
    needed += reference.workers[1] * reference.gpus_per_worker * config.objective.needs_reference
    needed += (generate.num_workers + bool(rounds.eval_prompts)) * generate.gpus_per_worker
    needed += config.judge.num_workers * config.judge.gpus_per_worker if config.judge is not None else 0
    there = runtime.count_gpus()
    return "" if needed <= there else f"GPUs for all roles at once would be {needed:g}, and there are {there}"


def _memory(config: Config, initial: ResolvedModel, dtype: str, judged_by: Iterable[ResolvedModel]) -> str:
    """Why not all models of a run fit into main memory at once; empty where they do, or their files do not say."""
    weights, free = whole_bytes(initial, dtype), free_bytes("cpu")
    if weights is None:
        return ""
    needed = sum(_main_memory(config, weights, dtype, judged_by)) / runtime.count_nodes()
    if needed <= USED_SHARE * free:
        return ""
    return f"all models of the run take about {needed / _GB:.1f} GB at once, and {free / _GB:.1f} GB are free"


def _main_memory(config: Config, weights: int, dtype: str, judged_by: Iterable[ResolvedModel]) -> Iterable[float]:
    """Bytes by role, of roles on CPUs."""
    train, reference, generate, judge = config.train, config.reference, config.generate, config.judge
    engine = weights + (ENGINE_BYTES if generate.engine != "transformers" else 0)
    if not train.gpus_per_worker:
        numbers = weights / (4 if dtype == "float32" else 2)
        yield train.ranks[1] * (numbers * TRAINED_BYTES if train.lora is None else 1.5 * weights)
    if not reference.gpus_per_worker and config.objective.needs_reference:
        yield reference.workers[1] * weights
    if not generate.gpus_per_worker and config.rounds is not None:
        scorers = (1 + (config.rounds.reference != "initial")) * bool(config.rounds.eval_prompts)
        yield (generate.num_workers + scorers) * engine
    if judge is not None and not judge.gpus_per_worker:
        yield judge.num_workers * sum(whole_bytes(model, dtype) or 0 for model in judged_by)
