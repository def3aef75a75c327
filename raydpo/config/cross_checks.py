"""Checks that need more than one section of the config. Nothing is looked up: no file, no model, no machine.

Comes in: a config, or what is left of one whose broken keys were taken out. Goes out: finished sentences.
Decision: an option that would have no effect is an error here, before anything is started, with what to do. Each check is
small, because one that needs a key that was taken out says nothing at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from raydpo.config.doors import FORMATS, SCHEDULES, SINKS
from raydpo.config.mixture_entry import paths_of
from raydpo.config.objective_table import OBJECTIVES
from raydpo.config.outside import is_outside, source_sha256
from raydpo.config.places import PLACES, may_hold_out, no_path, texts_under, unread_scheme
from raydpo.config.section_base import say_what_is_known

if TYPE_CHECKING:
    from raydpo.config.sections import Config, DataSection


_TRAINING = ("train", "check", "iterate")
"""Verbs that read what a training alone does."""


def cross_checks(config: Config, verb: str | None = None) -> list[str]:
    """Every problem between sections. verb: "train", "iterate", ...; None: what is wrong whatever is done with the config."""
    checks: tuple[Callable[[Config], Iterable[str]], ...] = (
        *(partial(_place, key=key) for key in PLACES),
        _labels,
        partial(_files, verb=verb),
        partial(_outside_format, verb=verb),
        partial(_outside_schedule, verb=verb),
        partial(_outside_sinks, verb=verb),
        _idle_reference_model,
        _idle_reference_revision,
        _nodes_of_the_local_runtime,
        _strict_pools,
        _parts_of_gpus,
        _flash_attention,
        _still_reference,
        _moving_reference,
        _moving_adapter,
        _streamed_packed,
        _shared_sequences,
        _weights_alone,
        _held_out_data,
        _evaluations,
        _margins,
    )
    return say_what_is_known(partial(check, config) for check in checks)


def _place(config: Config, key: str) -> Iterator[str]:
    for text in texts_under(config, key):
        yield from unread_scheme(key, text)
        yield from no_path(key, text)


def _labels(config: Config) -> Iterator[str]:
    if config.data.unpair and config.objective.row.data != "labels":
        names = ", ".join(row.name for row in OBJECTIVES.values() if row.data == "labels")
        yield (
            f"data.unpair is true, but objective {config.objective.name} does not read labels, and it would do nothing; "
            f"objectives that do: {names}. Leave it out."
        )


def _files(config: Config, verb: str | None) -> Iterator[str]:
    data = config.data
    if verb in (None, "iterate"):
        return
    if not data.train and not data.eval:
        yield "data.train and data.eval are both empty: there is nothing to read. Name at least one file."
    elif verb == "train" and not data.train:
        yield "data.train is empty: train needs at least one file, folder, glob or hub id of examples."
    elif verb == "evaluate" and not _has_held_out(data):
        yield "data.eval is empty: evaluate needs held-out examples, or data.eval_fraction above 0."


def _outside_format(config: Config, verb: str | None) -> list[str]:
    return FORMATS.problems(config.data.format) if verb not in (None, "iterate") else []


def _outside_schedule(config: Config, verb: str | None) -> list[str]:
    return SCHEDULES.problems(config.train.schedule) if verb in _TRAINING else []


def _outside_sinks(config: Config, verb: str | None) -> list[str]:
    if verb not in _TRAINING:
        return []
    return [problem for name in config.train.sinks for problem in SINKS.problems(name)]


def outside_sources(config: Config) -> dict[str, str]:
    """Of every outside name that decides the numbers of a training: "source of key" -> digest of its module's file."""
    named = [("objective", term.name) for term in config.objective.terms]
    named.append(("train.schedule", config.train.schedule))
    return {f"source of {key} {name}": source_sha256(name) for key, name in named if is_outside(name)}


def _idle_reference_model(config: Config) -> Iterator[str]:
    if config.reference.model is not None and not config.objective.needs_reference:
        yield (
            f"reference.model is set, but objective {config.objective.name} has no reference and "
            "does not read it; leave it out."
        )


def _idle_reference_revision(config: Config) -> Iterator[str]:
    if config.reference.revision is not None and config.reference.model is None:
        yield "reference.revision is set without reference.model and would do nothing; leave it out."


def _flash_attention(config: Config) -> Iterator[str]:
    gpus = (config.train.gpus_per_worker, config.reference.gpus_per_worker)
    if config.model.attention == "flash_attention_2" and (not all(gpus) or config.model.dtype == "float32"):
        yield (
            "model.attention: flash_attention_2 needs bfloat16 and GPUs for both roles (train.gpus_per_worker and "
            "reference.gpus_per_worker above 0). Use sdpa otherwise."
        )


def _actor_roles(config: Config) -> dict[str, Any]:
    """Sections with actors, by their names."""
    sections = {name: getattr(config, name) for name in ("train", "reference", "generate", "judge")}
    return {name: section for name, section in sections.items() if section is not None}


def _nodes_of_the_local_runtime(config: Config) -> Iterator[str]:
    if config.run.runtime != "local":
        return
    if config.run.wait_for_nodes_s:
        yield "run.wait_for_nodes_s with run.runtime: local, which is one machine, and no other comes. Leave one of them out."
    for role, section in _actor_roles(config).items():
        if set_keys := [key for key in type(section.scheduling).model_fields if section.scheduling.is_changed(key)]:
            yield (
                f"{role}.scheduling sets {', '.join(set_keys)}, and run.runtime: local has one machine and no nodes to choose "
                "from; it would do nothing. Leave it out, or use run.runtime: ray."
            )


def _strict_pools(config: Config) -> Iterator[str]:
    for role, section in _actor_roles(config).items():
        if role != "train" and section.scheduling.strategy.startswith("STRICT"):
            yield (
                f"{role}.scheduling.strategy: {section.scheduling.strategy}; PACK and SPREAD are allowed. Workers of a pool "
                "come and go one by one, and nothing holds places for all; a label_selector keeps them on certain nodes."
            )


def _parts_of_gpus(config: Config) -> Iterator[str]:
    for role, section in _actor_roles(config).items():
        gpus = section.gpus_per_worker
        if role != "train" and gpus > 1 and gpus != int(gpus):
            yield f"{role}.gpus_per_worker: {gpus:g}; a part of one GPU (0.5) or a whole number is allowed."


def _still_reference(config: Config) -> Iterator[str]:
    """(A config.yaml that was written resolved names the default of sync_alpha: no problem.)"""
    reference = config.reference
    if reference.sync_every is None and reference.is_changed("sync_alpha"):
        yield (
            f"reference.sync_alpha: {reference.sync_alpha} is the policy's share at an update of the reference, and without "
            "reference.sync_every there is none; set reference.sync_every, or leave sync_alpha out."
        )


def _moving_reference(config: Config) -> Iterator[str]:
    every, objective = config.reference.sync_every, config.objective
    if every is not None and not objective.needs_reference:
        yield f"reference.sync_every: {every}, but objective {objective.name} has no reference to update; leave it out."


def _moving_adapter(config: Config) -> Iterator[str]:
    if config.reference.sync_every is not None and config.train.lora is not None:
        yield (
            f"reference.sync_every: {config.reference.sync_every} with train.lora: an update mixes all weights of policy and "
            "reference, and the policy would be an adapter. Leave train.lora out to train all weights, or leave "
            "reference.sync_every out."
        )


def _streamed_packed(config: Config) -> Iterator[str]:
    lora = config.train.lora
    if config.reference.weights == "streamed" and lora is not None and lora.quantize_base != "none":
        yield (
            f"reference.weights: streamed with train.lora.quantize_base: {lora.quantize_base}: the reference is the packed "
            "base, and layers that are read one by one are not packed. Leave reference.weights out: in 4 bits the whole model "
            "takes half a byte a weight."
        )


def _shared_sequences(config: Config) -> Iterator[str]:
    size = config.train.sequence_parallel_size
    if size == 1:
        return
    if config.model.attention != "auto":
        yield (
            f"train.sequence_parallel_size: {size} with model.attention: {config.model.attention}, which pads rows; ranks "
            "share a packed stream. Leave model.attention at auto."
        )
    if config.reference.weights == "trainers":
        yield (
            f"train.sequence_parallel_size: {size} with reference.weights: trainers, where each rank scores rows of its own. "
            "Leave reference.weights out: workers then score the reference."
        )


def _weights_alone(config: Config) -> Iterator[str]:
    if config.train.save != "weights":
        return
    moves = "reference.sync_every" if config.reference.sync_every is not None else ""
    carries = "rounds.optimizer: carried" if config.rounds is not None and config.rounds.optimizer == "carried" else ""
    for key in filter(None, (moves, carries)):
        left_out = f"Leave train.save out, or {key.partition(':')[0]}."
        yield f"train.save: weights with {key}, which goes on from checkpoints. {left_out}"


def chosen_by_evaluations(config: Config) -> list[str]:
    """What is set and chooses by evaluations: "train.key: value"."""
    train = config.train
    keys = ("early_stopping_patience", "export")
    return [f"train.{key}: {getattr(train, key)}" for key in keys if train.is_changed(key)]


def _has_held_out(data: DataSection) -> bool:
    """Whether there is, or may turn out to be, held-out data: a folder or hub data set may hold some by name."""
    return bool(data.eval or data.eval_fraction) or any(may_hold_out(path) for path in paths_of(data.train))


def _held_out_data(config: Config) -> Iterator[str]:
    if (wanting := chosen_by_evaluations(config)) and not _has_held_out(config.data):
        yield f"{', '.join(wanting)} looks at held-out data, and there is none; set data.eval."


def _evaluations(config: Config) -> Iterator[str]:
    if (wanting := chosen_by_evaluations(config)) and config.train.eval_every is None:
        yield f"{', '.join(wanting)} looks at evaluations during training; set train.eval_every."


def _margins(config: Config) -> Iterator[str]:
    if config.objective.row.data != "answers":
        return
    needs_pairs = {
        "train.early_stopping_patience": config.train.early_stopping_patience,
        "train.best_metric": config.train.best_metric if config.train.best_metric != "eval/loss" else None,
    }
    for key, value in needs_pairs.items():
        if value is not None:
            yield f"{key}: {value} needs reward margins, and objective {config.objective.name} has no pairs; leave it out."


def best_metric(config: Config) -> str:
    """The metric that names the best checkpoint."""
    has_rewards = config.objective.row.data != "answers"
    return config.train.best_metric or ("eval/rewards/margins" if has_rewards else "eval/loss")
