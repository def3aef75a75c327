"""Checks that need more than one section of the config, or the config of the model. No weights are read.

Decision: an option that would have no effect is an error here, before anything is started, with what to do.
"""

from __future__ import annotations

from pathlib import Path

from raydpo.config.doors import FORMATS, SCHEDULES, SINKS
from raydpo.config.objective_table import OBJECTIVES
from raydpo.config.outside import is_outside, source_sha256
from raydpo.config.sections import Config, ReferenceSection


def cross_checks(config: Config, verb: str) -> list[str]:
    """Every problem between sections, as finished sentences."""
    problems = [*_data(config, verb), *_model(config), *_moving_reference(config), *_evaluations(config)]
    problems += _outside(config, verb)
    if config.objective.row.data == "answers":
        needs_pairs = {
            "train.early_stopping_patience": config.train.early_stopping_patience,
            "train.best_metric": config.train.best_metric if config.train.best_metric != "eval/loss" else None,
        }
        problems += [
            f"{key}: {value} needs reward margins, and objective {config.objective.name} has no pairs; leave it out."
            for key, value in needs_pairs.items()
            if value is not None
        ]
    return problems


def _data(config: Config, verb: str) -> list[str]:
    data = config.data
    if data.unpair and config.objective.row.data != "labels":
        names = ", ".join(row.name for row in OBJECTIVES.values() if row.data == "labels")
        return [
            f"data.unpair is true, but objective {config.objective.name} does not read labels, and it would do nothing; "
            f"objectives that do: {names}. Leave it out."
        ]
    if verb == "iterate":
        return []
    if not data.train and not data.eval:
        return ["data.train and data.eval are both empty: there is nothing to read. Name at least one file."]
    if verb == "train" and not data.train:
        return ["data.train is empty: train needs at least one file, folder, glob or hub id of examples."]
    if verb == "evaluate" and not data.eval and not data.eval_fraction:
        return ["data.eval is empty: evaluate needs held-out examples, or data.eval_fraction above 0."]
    return []


def _outside(config: Config, verb: str) -> list[str]:
    """What cannot be had of other packages, as far as `verb` reads it. Objectives were found when the config was made."""
    problems = FORMATS.problems(config.data.format) if verb != "iterate" else []
    if verb in ("train", "check", "iterate"):
        problems += SCHEDULES.problems(config.train.schedule)
        problems += [problem for name in config.train.sinks for problem in SINKS.problems(name)]
    return problems


def outside_sources(config: Config) -> dict[str, str]:
    """Of every outside name that decides the numbers of a training: "source of key" -> digest of its module's file."""
    named = [("objective", term.name) for term in config.objective.terms]
    named.append(("train.schedule", config.train.schedule))
    return {f"source of {key} {name}": source_sha256(name) for key, name in named if is_outside(name)}


def _model(config: Config) -> list[str]:
    problems = []
    if config.model.revision is not None and Path(config.model.path).expanduser().is_dir():
        problems.append("model.revision is set, but model.path is a folder, which has no revisions; leave it out.")
    if config.reference.model is not None and not config.objective.needs_reference:
        problems.append(
            f"reference.model is set, but objective {config.objective.name} has no reference and "
            "does not read it; leave it out."
        )
    if config.reference.revision is not None and config.reference.model is None:
        problems.append("reference.revision is set without reference.model and would do nothing; leave it out.")
    gpus = (config.train.gpus_per_worker, config.reference.gpus_per_worker)
    if config.model.attention == "flash_attention_2" and (not all(gpus) or config.model.dtype == "float32"):
        problems.append(
            "model.attention: flash_attention_2 needs bfloat16 and GPUs for both roles (train.gpus_per_worker and "
            "reference.gpus_per_worker above 0). Use sdpa otherwise."
        )
    return problems


def _moving_reference(config: Config) -> list[str]:
    """Of `reference.sync_every`. (A config.yaml that was written resolved names the default of sync_alpha: no problem.)"""
    reference = config.reference
    if reference.sync_every is None:
        if reference.sync_alpha == ReferenceSection.model_fields["sync_alpha"].default:
            return []
        return [
            f"reference.sync_alpha: {reference.sync_alpha} is the policy's share at an update of the reference, and without "
            "reference.sync_every there is none; set reference.sync_every, or leave sync_alpha out."
        ]
    problems, given = [], f"reference.sync_every: {reference.sync_every}"
    if not config.objective.needs_reference:
        problems.append(f"{given}, but objective {config.objective.name} has no reference to update; leave it out.")
    if config.train.lora is not None:
        problems.append(
            f"{given} with train.lora: an update mixes all weights of policy and reference, and the policy would be an "
            "adapter. Leave train.lora out to train all weights, or leave reference.sync_every out."
        )
    return problems


def _evaluations(config: Config) -> list[str]:
    train, data = config.train, config.data
    wanting = [
        f"{key}: {value}"
        for key, value, default in (
            ("train.early_stopping_patience", train.early_stopping_patience, None),
            ("train.export", train.export, "last"),
        )
        if value != default
    ]
    problems = []
    if wanting and not data.eval and not data.eval_fraction:
        problems.append(f"{', '.join(wanting)} looks at held-out data, and there is none; set data.eval.")
    if wanting and train.eval_every is None:
        problems.append(f"{', '.join(wanting)} looks at evaluations during training; set train.eval_every.")
    return problems


def best_metric(config: Config) -> str:
    """The metric that names the best checkpoint."""
    has_rewards = config.objective.row.data != "answers"
    return config.train.best_metric or ("eval/rewards/margins" if has_rewards else "eval/loss")
