"""What is wrong with a section `judge`, found before anything is sampled.

Comes in: a checked JudgeSection. Goes out: finished sentences, all of them.
Decision: what costs little (rules, files, functions, URLs) is made as a worker makes it and thrown away; of a model the
folder and the config are looked at. Price: the module of a judge's function is imported on the driver as well.
"""

from __future__ import annotations

from raydpo.config.round_sections import JudgeSection
from raydpo.errors import ConfigError, UserError
from raydpo.judge.build import build_judge
from raydpo.judge.function import importable
from raydpo.judge.judge_inputs import find_model, loads_model, local_model, members_of
from raydpo.judge.reward_config import check_reward_model
from raydpo.models.resolve import local_folder


def problems_of(section: JudgeSection, *, asks_hub: bool = True) -> list[str]:
    """Every reason why a worker could not make the judge of `section`, those of members with their number. asks_hub: whether
    models that are not on this machine are looked for."""
    try:
        local_model(section)
    except ConfigError as error:
        return [*error.problems, *_problems(section, asks_hub)]
    return _problems(section, asks_hub)


def _problems(section: JudgeSection, asks_hub: bool) -> list[str]:
    if section.kind == "ensemble":
        return [
            f"judge.members, number {number}: {problem}"
            for number, member in enumerate(members_of(section))
            for problem in _problems(member, asks_hub)
        ]
    try:
        _try(section, asks_hub)
    except UserError as error:
        return list(error.problems)
    return []


def _try(section: JudgeSection, asks_hub: bool) -> None:
    if not loads_model(section):
        with importable():
            build_judge(section)
        return
    name = section.model or ""
    if not asks_hub and local_folder("judge.model", name) is None:
        return
    folder = find_model(name).folder
    if section.kind == "reward_model":
        check_reward_model(folder)
