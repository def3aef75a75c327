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


def problems_of(section: JudgeSection) -> list[str]:
    """Every reason why a worker could not make the judge of `section`, those of members with their number."""
    try:
        local_model(section)
    except ConfigError as error:
        return [*error.problems, *_problems(section)]
    return _problems(section)


def _problems(section: JudgeSection) -> list[str]:
    if section.kind == "ensemble":
        return [
            f"judge.members, number {number}: {problem}"
            for number, member in enumerate(members_of(section))
            for problem in _problems(member)
        ]
    try:
        _try(section)
    except UserError as error:
        return list(error.problems)
    return []


def _try(section: JudgeSection) -> None:
    if not loads_model(section):
        with importable():
            build_judge(section)
        return
    folder = find_model(section.model or "").folder
    if section.kind == "reward_model":
        from raydpo.judge.reward_model import check_reward_model

        check_reward_model(folder)
