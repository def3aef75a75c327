"""What must fit together in a config before the first prompt is sampled: between `rounds`, `judge` and the other sections.

Comes in: a config, or what is left of one whose broken keys were taken out. Goes out: finished sentences. Nothing is looked
up here: models, files and what a judge is made of are looked at in `raydpo.rounds.preflight`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from raydpo.config.key_facts import keys_that
from raydpo.config.outside import is_outside
from raydpo.config.round_sections import JudgeSection, RoundsSection
from raydpo.config.section_base import is_known, say_what_is_known

if TYPE_CHECKING:
    from raydpo.config.sections import Config


def rounds_checks(config: Config, has_judge: bool) -> list[str]:
    """Every problem of a run of rounds. has_judge: a function was handed in."""
    checks = (
        *((_handed_in,) if has_judge else (_scores, _eval_scores, _named_function)),
        _prompts,
        _num_answers,
        _stop_rules,
        _objective,
        _labels,
        _offline_share,
        _mismatched,
        _pairs_per_round,
        _export,
        _columns,
        _early_stopping,
        _reference_keys,
        _carried_schedule,
        _carried_adapter,
        _packed_base,
        _resume,
        _format,
        _idle,
        _generators,
    )
    if not is_known(config, "rounds"):
        return []
    if config.rounds is None:
        return ["rounds is missing: iterate needs at least rounds: {prompts: [prompts.jsonl], reference: initial}."]
    return say_what_is_known(partial(check, config, config.rounds) for check in checks)


def awaits_function(config: Config) -> bool:
    """Whether scores have to come from a function that is handed to `raydpo.iterate`: the config names nobody else."""
    if config.judge is not None:
        return config.judge.kind == "function" and not config.judge.function
    return config.rounds is not None and (config.rounds.pairs != "spin" or bool(config.rounds.eval_prompts))


def _scores(config: Config, rounds: RoundsSection) -> Iterator[str]:
    if config.judge is None and rounds.pairs != "spin":
        yield (
            f"rounds.pairs: {rounds.pairs} needs scores, and there is no judge. Set judge, or call "
            "raydpo.iterate(config, judge=function)."
        )


def _eval_scores(config: Config, rounds: RoundsSection) -> Iterator[str]:
    if config.judge is None and rounds.eval_prompts:
        yield "rounds.eval_prompts are measured by a judge, and there is none. Set judge, or leave them out."


def _named_function(config: Config, rounds: RoundsSection) -> Iterator[str]:
    judge = config.judge
    if judge is not None and judge.kind == "function" and not judge.function:
        yield (
            "judge.function is missing, and no function was handed in: nobody would have judged. Set judge.function: "
            "package.module:name, or call raydpo.iterate(config, judge=function)."
        )


def _handed_in(config: Config, rounds: RoundsSection) -> Iterator[str]:
    """What is wrong with a section when a function was handed in."""
    judge = config.judge
    if judge is None:
        return
    if judge.kind != "function" or judge.function:
        yield (
            "judge: a function was handed in as well; which of the two is meant? Leave one of them out. (judge: {kind: "
            "function, max_failed_fraction: 0.1} names none, and may be given with it.)"
        )
        return
    for key, fact in keys_that(JudgeSection):
        if fact.is_of_actors and judge.is_changed(key):
            yield (
                f"judge.{key}: {getattr(judge, key):g} is of judge actors; a function that is handed in is called in the "
                "driver's process, and it would do nothing. Leave it out, or name the function in judge.function."
            )


def _prompts(config: Config, rounds: RoundsSection) -> Iterator[str]:
    if not rounds.prompts:
        yield "rounds.prompts is empty: there would be nothing to answer. Name at least one file."


def _num_answers(config: Config, rounds: RoundsSection) -> Iterator[str]:
    if rounds.pairs != "spin" and config.generate.num_answers < 2:
        yield "generate.num_answers: 1 makes no pairs; set at least 2 (pairs: spin needs only 1)."


def _stop_rules(config: Config, rounds: RoundsSection) -> Iterator[str]:
    if rounds.eval_prompts:
        return
    facts = keys_that(RoundsSection)
    if rules := [f"rounds.{key}" for key, fact in facts if fact.looks_at_eval_prompts and rounds.is_changed(key)]:
        yield f"{', '.join(rules)} look at held-out prompts, and there are none; set rounds.eval_prompts."


def _objective(config: Config, rounds: RoundsSection) -> Iterator[str]:
    if config.objective.row.data == "answers":
        yield f"objective.name: {config.objective.name} reads no pairs; rounds need an objective that does."


def _labels(config: Config, rounds: RoundsSection) -> Iterator[str]:
    if config.objective.row.data == "labels" and not config.data.unpair:
        yield f"objective.name: {config.objective.name} reads labels, a round makes pairs; set data.unpair: true."


def _offline_share(config: Config, rounds: RoundsSection) -> Iterator[str]:
    if rounds.offline_share and not config.data.train:
        yield "rounds.offline_share needs data.train, from which the share is drawn."
    if rounds.offline_share and any(isinstance(entry, dict) for entry in config.data.train):
        yield "rounds.offline_share draws evenly from all rows of data.train; leave out passes, count, seed and name there."


def _mismatched(config: Config, rounds: RoundsSection) -> Iterator[str]:
    if rounds.prompts_per_round != 1 or rounds.offline_share:
        return
    if "mismatched" in config.objective.batch_kinds:
        yield (
            f"rounds.prompts_per_round: 1 gives objective {config.objective.name} nothing to train on: it compares each prompt "
            "with the answer to another one. Set at least 2."
        )


def _pairs_per_round(config: Config, rounds: RoundsSection) -> Iterator[str]:
    wanted, most = rounds.pairs_per_round, rounds.prompts_per_round
    if wanted is None:
        return
    if rounds.pairs == "spin":
        yield (
            f"rounds.pairs_per_round: {wanted} ends a round by the pairs of judged answers, and rounds.pairs: spin asks no "
            "judge. Leave it out; rounds.prompts_per_round says how long a round is."
        )
    if rounds.pairs in ("best_worst", "best_random") and most is not None and wanted > most:
        yield (
            f"rounds.pairs_per_round: {wanted} with rounds.prompts_per_round: {most}: rounds.pairs: {rounds.pairs} makes at "
            "most one pair of a prompt, so no round would have so many, and it would do nothing. Raise "
            "rounds.prompts_per_round, which is the most prompts that a round may take, or leave one of them out."
        )
    judge_gpus = 0.0 if config.judge is None else config.judge.gpus_per_worker
    if rounds.placement == "colocated" and judge_gpus and config.generate.gpus_per_worker:
        yield (
            f"rounds.pairs_per_round: {wanted} needs a judge that works while generators do, and with rounds.placement: "
            f"colocated the judge (judge.gpus_per_worker: {judge_gpus:g}) gets its GPU when they are through. Set placement: "
            "split, or leave rounds.pairs_per_round out."
        )


def _export(config: Config, rounds: RoundsSection) -> Iterator[str]:
    if config.train.export != "last":
        yield "train.export: best would train on from another policy than the one that is sent out; use last."


def _columns(config: Config, rounds: RoundsSection) -> Iterator[str]:
    for key in ("confidence_column", "weight_column"):
        if config.data.is_changed(key):
            yield f"data.{key} is a column that pairs of a round do not have; leave it out."


def _early_stopping(config: Config, rounds: RoundsSection) -> Iterator[str]:
    if config.train.early_stopping_patience is not None and not config.data.eval:
        yield "train.early_stopping_patience looks at data.eval in a round, and there is none; leave it out."


def _reference_keys(config: Config, rounds: RoundsSection) -> Iterator[str]:
    for key in ("model", "revision"):
        if config.reference.is_changed(key):
            value = getattr(config.reference, key)
            yield f"reference.{key}: {value} would not be read; rounds.reference names the reference of a round."


def _carried_schedule(config: Config, rounds: RoundsSection) -> Iterator[str]:
    if rounds.optimizer != "carried":
        return
    if config.train.schedule != "constant":
        falls = "starts anew in" if is_outside(config.train.schedule) else "falls to 0 within"
        yield (
            f"train.schedule: {config.train.schedule} {falls} each round, and rounds.optimizer: carried makes one "
            "training of them all. Set train.schedule: constant, or rounds.optimizer: fresh."
        )


def _carried_adapter(config: Config, rounds: RoundsSection) -> Iterator[str]:
    if rounds.optimizer == "carried" and config.train.lora is not None:
        yield (
            "rounds.optimizer: carried needs the same weights in every round, and with train.lora each round trains a new "
            "adapter. Leave one of them out."
        )


def _packed_base(config: Config, rounds: RoundsSection) -> Iterator[str]:
    lora = config.train.lora
    if lora is not None and lora.quantize_base != "none":
        yield (
            f"train.lora.quantize_base: {lora.quantize_base} with rounds: each round would begin by packing the policy of the "
            "round before again, which changes it without a gradient, and generators would sample from another model than the "
            "one that is trained. Leave quantize_base out, or train on pairs that you have with raydpo train."
        )


def _resume(config: Config, rounds: RoundsSection) -> Iterator[str]:
    if config.run.resume != "auto":
        yield (
            f"run.resume: {config.run.resume} does nothing here: rounds always go on. Set another run.dir to start over."
        )


def _format(config: Config, rounds: RoundsSection) -> Iterator[str]:
    if config.data.format != "auto":
        yield f"data.format: {config.data.format} would not be read: each file of a round has its own. Leave it out."


def _idle(config: Config, rounds: RoundsSection) -> Iterator[str]:
    """Options of rounds that would do nothing. (A config.yaml that was written resolved names defaults: no problem.)"""
    for key, fact in keys_that(RoundsSection):
        needs = fact.read_with
        if needs is None or getattr(rounds, needs.key) == needs.value or not rounds.is_changed(key):
            continue
        if needs.also_outside and is_outside(getattr(rounds, needs.key)):
            continue
        yield (
            f"rounds.{key}: {getattr(rounds, key):g} is read with rounds.{needs.key}: {needs.value} alone, and {needs.subject} "
            f"is {getattr(rounds, needs.key)}: it would do nothing. Leave it out, or set rounds.{needs.key}: {needs.value}."
        )


def _generators(config: Config, rounds: RoundsSection) -> Iterator[str]:
    generate = config.generate
    if generate.gpus_per_worker > 1 and generate.engine == "transformers":
        yield (
            f"generate.gpus_per_worker: {generate.gpus_per_worker:g}; a generator of engine transformers holds its whole "
            "policy on one GPU, and the others would stand idle. Set at most 1, and generate.num_workers to the number of "
            "GPUs; or engine: vllm, which spreads one policy over them."
        )
    if generate.engine != "vllm" and generate.is_changed("vllm"):
        yield f"generate.vllm is read with generate.engine: vllm alone, and it is {generate.engine}. Leave it out."
    if generate.vllm.quantization is not None:
        yield (
            f"generate.vllm.quantization: {generate.vllm.quantization}; a quantised policy is not the one that is trained, and "
            "log-ratios of what it samples would be off by more than rounding. Leave it out; judges may have it."
        )
