"""What must fit together before the first prompt is sampled, and what may change between two attempts at the same run."""

from __future__ import annotations

import json
from typing import Any

from raydpo import runtime
from raydpo.artifacts import write_json
from raydpo.config import Config
from raydpo.errors import ConfigError, ResourceError, ResumeError
from raydpo.pipelines.plan import FREE as FREE_IN_TRAINING
from raydpo.pipelines.plan import differences, trajectory
from raydpo.pipelines.rounds.layout import Layout
from raydpo.pipelines.rounds.stop import needs_evaluation

FREE = FREE_IN_TRAINING - {"generate", "judge", "rounds"} | {
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
    "judge.num_workers",
    "judge.cpus_per_worker",
    "judge.gpus_per_worker",
    "judge.max_retries",
    "judge.timeout_s",
    "judge.tokens_per_batch",
    "judge.max_failed_fraction",
}
"""Keys that change no number of a round. Prompts are compared by the digests of what is in them."""


def check_rounds(config: Config, has_judge: bool) -> None:
    """Raise ConfigError with every problem between the sections."""
    rounds = config.rounds
    if rounds is None:
        raise ConfigError(
            "rounds is missing: iterate needs at least rounds: {prompts: [prompts.jsonl], reference: initial}."
        )
    problems = []
    judged = has_judge or config.judge is not None
    if rounds.pairs != "spin" and not judged:
        problems.append(
            f"rounds.pairs: {rounds.pairs} needs scores, and there is no judge. Set judge, or call raydpo.iterate(config, "
            "judge=function)."
        )
    if rounds.eval_prompts and not judged:
        problems.append("rounds.eval_prompts are measured by a judge, and there is none. Set judge, or leave them out.")
    if has_judge and config.judge is not None:
        problems.append("judge: a function was handed in as well; which of the two is meant? Leave one of them out.")
    if rounds.pairs != "spin" and config.generate.num_answers < 2:
        problems.append("generate.num_answers: 1 makes no pairs; set at least 2 (pairs: spin needs only 1).")
    if (broken := needs_evaluation(rounds)) and not rounds.eval_prompts:
        problems.append(f"{', '.join(broken)} look at held-out prompts, and there are none; set rounds.eval_prompts.")
    if config.objective.row.data == "answers":
        problems.append(f"objective.name: {config.objective.name} reads no pairs; rounds need an objective that does.")
    if config.train.export != "last":
        problems.append(
            "train.export: best would train on from another policy than the one that is sent out; use last."
        )
    if rounds.offline_share and not config.data.train:
        problems.append("rounds.offline_share needs data.train, from which the share is drawn.")
    for key in ("confidence_column", "weight_column"):
        if getattr(config.data, key) is not None:
            problems.append(f"data.{key} is a column that pairs of a round do not have; leave it out.")
    if config.objective.row.data == "labels" and not config.data.unpair:
        problems.append(
            f"objective.name: {config.objective.name} reads labels, a round makes pairs; set data.unpair: true."
        )
    if config.train.early_stopping_patience is not None and not config.data.eval:
        problems.append("train.early_stopping_patience looks at data.eval in a round, and there is none; leave it out.")
    for key, value in (("model", config.reference.model), ("revision", config.reference.revision)):
        if value is not None:
            problems.append(
                f"reference.{key}: {value} would not be read; rounds.reference names the reference of a round."
            )
    if config.run.resume != "auto":
        problems.append(
            f"run.resume: {config.run.resume} does nothing here: rounds always go on. Set another run.dir to start over."
        )
    if config.data.format != "auto":
        problems.append(
            f"data.format: {config.data.format} would not be read: each file of a round has its own. Leave it out."
        )
    if problems:
        raise ConfigError(problems)


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


def check_same_run(layout: Layout, digests: dict[str, Any]) -> None:
    """Raise ResumeError when the run directory holds rounds that were made with other settings; else note these."""
    wanted = trajectory(layout.config, digests, FREE)
    path = layout.dir / "rounds.json"
    if path.is_file():
        changed = differences(json.loads(path.read_text()), wanted)
        if changed:
            raise ResumeError(
                [
                    f"{layout.dir} holds rounds that were made with other settings; set run.dir to a new folder.",
                    *changed,
                ]
            )
    write_json(path, wanted)
