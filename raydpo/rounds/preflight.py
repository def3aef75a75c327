"""What must fit together before the first prompt is sampled, and what may change between two attempts at the same run.

Comes in: a config whose sections fit together (`raydpo.config.rounds_checks`). Here is what needs more than the config: the
judge, models on disk, the room on the machine, and what the run directory already holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from raydpo import runtime
from raydpo.artifacts import write_json
from raydpo.config import Config
from raydpo.config.cross_checks import cross_checks
from raydpo.config.doors import PAIRS
from raydpo.config.key_facts import free_keys
from raydpo.config.round_sections import OF_THE_RUN
from raydpo.config.rounds_checks import rounds_checks
from raydpo.config.section_base import say_what_is_known
from raydpo.errors import ConfigError, ResourceError, ResumeError
from raydpo.generate.make_engine import engine_problems
from raydpo.judge.judge_inputs import asks_local_models, may_use_gpu
from raydpo.judge.judge_problems import problems_of
from raydpo.models.quantised import refuse_quantised
from raydpo.models.resolve import local_folder, resolve_model
from raydpo.rundir.named_models import problems_on_disk
from raydpo.rundir.resume import differences, trajectory
from raydpo.rundir.rounds_folder import RoundsFolder
from raydpo.schema.json_text import read_object

FREE = free_keys(Config, "rounds")
"""Keys that change no number of a round. Prompts are compared by the digests of what is in them, the judge by what its
scores depend on."""


def check_rounds(config: Config, has_judge: bool) -> None:
    """Raise ConfigError with every problem of the sections, the judge and, next to other problems, the models on this machine.

    has_judge: a function was handed in.
    """
    problems = rounds_checks(config, has_judge)
    if config.rounds is not None:
        problems += problems_of_parts(config, has_judge)
    if problems:
        raise ConfigError(list(dict.fromkeys([*problems, *cross_checks(config, "iterate"), *problems_on_disk(config)])))


def problems_of_parts(config: Config, has_judge: bool = False, *, asks_hub: bool = True) -> list[str]:
    """What is wrong with the judge, the engine and the reference that the config of a run of rounds names. asks_hub: whether
    models that are not on this machine are looked for."""
    judge = (_judge_gpus, partial(_judge, asks_hub=asks_hub))
    checks = (*(() if has_judge else judge), _pairs, _engine, partial(_reference, asks_hub=asks_hub))
    return say_what_is_known(partial(check, config) for check in checks)


def _judge_gpus(config: Config) -> Iterator[str]:
    judge = config.judge
    if judge is None or not judge.gpus_per_worker or (judge.kind == "function" and not judge.function):
        return
    given = f"judge.gpus_per_worker: {judge.gpus_per_worker:g}"
    if not may_use_gpu(judge):
        yield (
            f"{given} would stand idle: a judge of kind {judge.kind} loads no model"
            f"{' next to an endpoint' if judge.endpoint else ''}, and others would wait for the GPU. Leave it out."
        )
    elif judge.gpus_per_worker > 1 and asks_local_models(judge):
        if config.generate.engine == "vllm":
            yield from judge.vllm.misfits("judge", judge.gpus_per_worker)
        else:
            yield (
                f"{given}: a language model that judges with generate.engine: transformers uses one GPU, and the others would "
                "stand idle. Set at most 1, or generate.engine: vllm, which spreads it. (The layers of a reward model are "
                "spread with either.)"
            )


def _judge(config: Config, asks_hub: bool) -> Iterable[str]:
    """What is wrong with the judge of the config, as far as it can be found before a worker makes it."""
    judge = config.judge
    if judge is None or (judge.kind == "function" and not judge.function):
        return []
    return problems_of(judge, asks_hub=asks_hub)


def _engine(config: Config) -> Iterable[str]:
    """What an engine cannot do."""
    return engine_problems(config.generate)


def _pairs(config: Config) -> Iterable[str]:
    """Why the choice of pairs cannot be had, if it is of another package."""
    return PAIRS.problems(config.rounds.pairs) if config.rounds is not None else []


def _reference(config: Config, asks_hub: bool) -> Iterable[str]:
    """Why the model of `rounds.reference` is not there, if it is one."""
    if config.rounds is None or config.rounds.reference in OF_THE_RUN:
        return []
    try:
        found = (resolve_model if asks_hub else local_folder)("rounds.reference", config.rounds.reference)
        if found is not None:
            refuse_quantised("rounds.reference", found.whole().folder)
    except ConfigError as error:
        return error.problems
    return []


def check_room(config: Config) -> None:
    """Raise ResourceError when roles that work at the same time do not fit together (`split`)."""
    rounds, generate, judge = config.rounds, config.generate, config.judge
    if rounds is None or rounds.placement != "split":
        return
    train, reference, problems = config.train, config.reference, []
    scored = config.objective.needs_reference
    for kind, there in (("cpus", runtime.count_cpus()), ("gpus", runtime.count_gpus())):
        each = f"{kind}_per_worker"
        needs = {"train": train.ranks[0] * getattr(train, each)}
        needs |= {"reference": reference.workers[0] * getattr(reference, each)} if scored else {}
        most = max(needs, key=lambda role: needs[role])
        if kind == "cpus":
            ours = generate.num_workers * generate.cpus_per_worker
        else:  # the initial policy scores next to the generators, for the KL divergence; judges reserve GPUs only
            ours = (generate.num_workers + bool(rounds.eval_prompts)) * generate.gpus_per_worker
            ours += judge.num_workers * judge.gpus_per_worker if judge is not None else 0
        if ours and ours + needs[most] > there:
            problems.append(
                f"rounds.placement: split runs generators and judge ({ours:g} {kind}) next to {most} ({needs[most]:g} {kind}), "
                f"and there are {there:g}. One of them would wait forever. Lower num_workers or {each} of one, or set "
                "rounds.placement: colocated."
            )
    if problems:
        raise ResourceError(problems)


_BEFORE_THERE_WAS_A_CHOICE = {"rounds.optimizer": "fresh", "rounds.sync_every": None, "rounds.pairs_per_round": None}


def check_same_run(layout: RoundsFolder, digests: dict[str, Any]) -> None:
    """Raise ResumeError when the run directory holds rounds that were made with other settings; else note these."""
    wanted = trajectory(layout.config, digests, FREE)
    path = layout.dir / "rounds.json"
    if path.is_file():
        try:
            before = read_object(path)
        except (OSError, ValueError) as error:
            raise ResumeError(
                f"{path} cannot be read: {error}. It says with which settings the rounds beside it were made, and others would "
                "have been mixed with them. Set run.dir to a new folder."
            ) from error
        changed = differences({**_BEFORE_THERE_WAS_A_CHOICE, **before}, wanted)
        if changed:
            raise ResumeError(
                [
                    f"{layout.dir} holds rounds that were made with other settings; set run.dir to a new folder.",
                    *changed,
                ]
            )
    write_json(path, wanted)
