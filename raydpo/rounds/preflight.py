"""What must fit together before the first prompt is sampled, and what may change between two attempts at the same run."""

from __future__ import annotations

import json
from typing import Any

from raydpo import runtime
from raydpo.artifacts import write_json
from raydpo.config import Config
from raydpo.config.doors import PAIRS
from raydpo.config.outside import is_outside
from raydpo.config.round_sections import GenerateSection, JudgeSection, RoundsSection
from raydpo.config.section import Section
from raydpo.errors import ConfigError, ResourceError, ResumeError
from raydpo.generate.make_engine import engine_problems
from raydpo.judge.judge_inputs import loads_model, may_use_gpu
from raydpo.judge.judge_problems import problems_of
from raydpo.models.resolve import resolve_model
from raydpo.rounds.round_config import OF_THE_RUN
from raydpo.rounds.stop import needs_evaluation
from raydpo.rundir.resume import FREE as FREE_IN_TRAINING
from raydpo.rundir.resume import differences, trajectory
from raydpo.rundir.rounds_folder import RoundsFolder

FREE = FREE_IN_TRAINING - {"generate", "rounds"} | {
    "rounds.prompts",
    "rounds.eval_prompts",
    "rounds.num_rounds",
    "rounds.min_mean_score",
    "rounds.min_win_rate",
    "rounds.max_kl_nats",
    "rounds.max_length_drift",
    "rounds.max_duplicate_share",
    "rounds.min_distinct_2",
    "generate.num_workers",
    "generate.cpus_per_worker",
    "generate.gpus_per_worker",
    "generate.max_retries",
}
"""Keys that change no number of a round. Prompts are compared by the digests of what is in them, the judge by what its
scores depend on."""


def check_rounds(config: Config, has_judge: bool) -> None:
    """Raise ConfigError with every problem between the sections, and of the judge. has_judge: a function was handed in."""
    rounds = config.rounds
    if rounds is None:
        raise ConfigError(
            "rounds is missing: iterate needs at least rounds: {prompts: [prompts.jsonl], reference: initial}."
        )
    judge = _handed_in(config.judge) if has_judge else _configured(config.judge)
    problems = [*_unjudged(config, rounds, has_judge), *judge, *_between(config, rounds), *_training(config, rounds)]
    problems += [*_idle(config, rounds), *_generators(config.generate), *_reference(rounds)]
    if problems:
        raise ConfigError(problems)


def awaits_function(config: Config) -> bool:
    """Whether scores have to come from a function that is handed to `raydpo.iterate`: the config names nobody else."""
    if config.judge is not None:
        return config.judge.kind == "function" and not config.judge.function
    return config.rounds is not None and (config.rounds.pairs != "spin" or bool(config.rounds.eval_prompts))


def _unjudged(config: Config, rounds: RoundsSection, has_judge: bool) -> list[str]:
    """What asks for scores where nobody gives any."""
    if has_judge or config.judge is not None:
        return []
    problems = []
    if rounds.pairs != "spin":
        problems.append(
            f"rounds.pairs: {rounds.pairs} needs scores, and there is no judge. Set judge, or call raydpo.iterate(config, "
            "judge=function)."
        )
    if rounds.eval_prompts:
        problems.append("rounds.eval_prompts are measured by a judge, and there is none. Set judge, or leave them out.")
    return problems


def _configured(judge: JudgeSection | None) -> list[str]:
    """What is wrong with the judge of the config, as far as it can be told before a worker makes it."""
    if judge is None:
        return []
    if judge.kind == "function" and not judge.function:
        return [
            "judge.function is missing, and no function was handed in: nobody would have judged. Set judge.function: "
            "package.module:name, or call raydpo.iterate(config, judge=function)."
        ]
    problems, given = [], f"judge.gpus_per_worker: {judge.gpus_per_worker:g}"
    if judge.gpus_per_worker and not may_use_gpu(judge):
        problems.append(
            f"{given} would stand idle: a judge of kind {judge.kind} loads no model"
            f"{' beside an endpoint' if judge.endpoint else ''}, and others would wait for the GPU. Leave it out."
        )
    elif judge.gpus_per_worker > 1 and loads_model(judge):
        problems.append(f"{given}: the model of a judge uses one GPU, and the others would stand idle. Set at most 1.")
    return problems + problems_of(judge)


def _handed_in(judge: JudgeSection | None) -> list[str]:
    """What is wrong with a section beside a function that was handed in."""
    if judge is None:
        return []
    if judge.kind != "function" or judge.function:
        return [
            "judge: a function was handed in as well; which of the two is meant? Leave one of them out. (judge: {kind: "
            "function, max_failed_fraction: 0.1} names none, and may stand beside it.)"
        ]
    actors = ("num_workers", "cpus_per_worker", "gpus_per_worker", "max_retries")
    return [
        f"judge.{key}: {getattr(judge, key):g} is of judge actors; a function that is handed in is called in the driver's "
        "process, and it would do nothing. Leave it out, or name the function in judge.function."
        for key in actors
        if _is_changed(judge, key)
    ]


def _between(config: Config, rounds: RoundsSection) -> list[str]:
    """What rounds need of other sections."""
    problems = PAIRS.problems(rounds.pairs)
    if not rounds.prompts:
        problems.append("rounds.prompts is empty: there would be nothing to answer. Name at least one file.")
    if rounds.pairs != "spin" and config.generate.num_answers < 2:
        problems.append("generate.num_answers: 1 makes no pairs; set at least 2 (pairs: spin needs only 1).")
    if (broken := needs_evaluation(rounds)) and not rounds.eval_prompts:
        problems.append(f"{', '.join(broken)} look at held-out prompts, and there are none; set rounds.eval_prompts.")
    if config.objective.row.data == "answers":
        problems.append(f"objective.name: {config.objective.name} reads no pairs; rounds need an objective that does.")
    if config.objective.row.data == "labels" and not config.data.unpair:
        problems.append(
            f"objective.name: {config.objective.name} reads labels, a round makes pairs; set data.unpair: true."
        )
    if rounds.offline_share and not config.data.train:
        problems.append("rounds.offline_share needs data.train, from which the share is drawn.")
    if rounds.prompts_per_round == 1 and "mismatched" in config.objective.batch_kinds and not rounds.offline_share:
        problems.append(
            f"rounds.prompts_per_round: 1 gives objective {config.objective.name} nothing to train on: it compares each prompt "
            "with the answer to another one. Set at least 2."
        )
    return problems


def _training(config: Config, rounds: RoundsSection) -> list[str]:
    """Options of a training run that do nothing, or harm, in a round."""
    problems = []
    if config.train.export != "last":
        problems.append(
            "train.export: best would train on from another policy than the one that is sent out; use last."
        )
    for key in ("confidence_column", "weight_column"):
        if getattr(config.data, key) is not None:
            problems.append(f"data.{key} is a column that pairs of a round do not have; leave it out.")
    if config.train.early_stopping_patience is not None and not config.data.eval:
        problems.append("train.early_stopping_patience looks at data.eval in a round, and there is none; leave it out.")
    for key, value in (("model", config.reference.model), ("revision", config.reference.revision)):
        if value is not None:
            problems.append(
                f"reference.{key}: {value} would not be read; rounds.reference names the reference of a round."
            )
    if rounds.optimizer == "carried":
        problems += _carried(config)
    if config.run.resume != "auto":
        problems.append(
            f"run.resume: {config.run.resume} does nothing here: rounds always go on. Set another run.dir to start over."
        )
    if config.data.format != "auto":
        problems.append(
            f"data.format: {config.data.format} would not be read: each file of a round has its own. Leave it out."
        )
    return problems


def _carried(config: Config) -> list[str]:
    """What does not go with optimizer state that is carried from round to round."""
    problems = []
    if config.train.schedule != "constant":
        falls = "starts anew in" if is_outside(config.train.schedule) else "falls to 0 within"
        problems.append(
            f"train.schedule: {config.train.schedule} {falls} each round, and rounds.optimizer: carried makes one "
            "training of them all. Set train.schedule: constant, or rounds.optimizer: fresh."
        )
    if config.train.lora is not None:
        problems.append(
            "rounds.optimizer: carried needs the same weights in every round, and with train.lora each round trains a new "
            "adapter. Leave one of them out."
        )
    return problems


def _idle(config: Config, rounds: RoundsSection) -> list[str]:
    """Options of rounds that would do nothing. (A config.yaml that was written resolved names defaults: no problem.)"""
    problems = []
    if rounds.pairs != "top_k" and not is_outside(rounds.pairs) and _is_changed(rounds, "top_k"):
        problems.append(
            f"rounds.top_k: {rounds.top_k} is read with rounds.pairs: top_k alone, and pairs is {rounds.pairs}: it would do "
            "nothing. Leave it out, or set rounds.pairs: top_k."
        )
    if rounds.reference != "ema" and _is_changed(rounds, "ema_decay"):
        problems.append(
            f"rounds.ema_decay: {rounds.ema_decay:g} is read with rounds.reference: ema alone, and the reference is "
            f"{rounds.reference}: it would do nothing. Leave it out, or set rounds.reference: ema."
        )
    return problems


def _generators(generate: GenerateSection) -> list[str]:
    """What an engine cannot do."""
    problems = []
    if generate.gpus_per_worker > 1:
        problems.append(
            f"generate.gpus_per_worker: {generate.gpus_per_worker:g}; a generator holds its whole policy on one GPU, and the "
            "others would stand idle. Set at most 1, and generate.num_workers to the number of GPUs."
        )
    return problems + engine_problems(generate)


def _reference(rounds: RoundsSection) -> list[str]:
    """Why the model of `rounds.reference` is not there, if it is one."""
    if rounds.reference in OF_THE_RUN:
        return []
    try:
        resolve_model("rounds.reference", rounds.reference, None)
    except ConfigError as error:
        return list(error.problems)
    return []


def _is_changed(section: Section, key: str) -> bool:
    return bool(getattr(section, key) != type(section).model_fields[key].default)


def check_room(config: Config) -> None:
    """Raise ResourceError when roles that work at the same time do not fit together (`split`)."""
    rounds, generate, judge = config.rounds, config.generate, config.judge
    if rounds is None or rounds.placement != "split":
        return
    train, reference, problems = config.train, config.reference, []
    scored = config.objective.needs_reference
    for kind, there in (("cpus", runtime.count_cpus()), ("gpus", runtime.count_gpus())):
        each = f"{kind}_per_worker"
        needs = {"train": train.num_workers * getattr(train, each)}
        needs |= {"reference": reference.num_workers * getattr(reference, each)} if scored else {}
        most = max(needs, key=lambda role: needs[role])
        if kind == "cpus":
            ours = generate.num_workers * generate.cpus_per_worker
        else:  # the initial policy scores beside the generators, for the KL divergence; judges reserve GPUs only
            ours = (generate.num_workers + bool(rounds.eval_prompts)) * generate.gpus_per_worker
            ours += judge.num_workers * judge.gpus_per_worker if judge is not None else 0
        if ours and ours + needs[most] > there:
            problems.append(
                f"rounds.placement: split runs generators and judge ({ours:g} {kind}) beside {most} ({needs[most]:g} {kind}), "
                f"and there are {there:g}. One of them would wait for ever. Lower num_workers or {each} of one, or set "
                "rounds.placement: colocated."
            )
    if problems:
        raise ResourceError(problems)


def check_same_run(layout: RoundsFolder, digests: dict[str, Any]) -> None:
    """Raise ResumeError when the run directory holds rounds that were made with other settings; else note these."""
    wanted = trajectory(layout.config, digests, FREE)
    path = layout.dir / "rounds.json"
    if path.is_file():
        # What was written before there was a choice was made without it.
        changed = differences({"rounds.optimizer": "fresh", **json.loads(path.read_text())}, wanted)
        if changed:
            raise ResumeError(
                [
                    f"{layout.dir} holds rounds that were made with other settings; set run.dir to a new folder.",
                    *changed,
                ]
            )
    write_json(path, wanted)
