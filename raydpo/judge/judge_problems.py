"""What is wrong with a section `judge`, found before anything is sampled.

Comes in: a checked JudgeSection. Goes out: finished sentences, all of them.
Decision: what costs little (rules, files, functions, URLs) is made as a worker makes it and thrown away; of a model the
folder and the config are looked at. Price: the module of a judge's function is imported on the driver as well.
"""

from __future__ import annotations

import difflib
import inspect
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from raydpo.config.outside import is_outside
from raydpo.config.round_sections import KINDS, JudgeSection, kind_of
from raydpo.errors import ConfigError, UserError
from raydpo.judge.build import build_judge
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
    if section.members:
        return [
            f"judge.members, number {number}: {problem}"
            for number, member in enumerate(members_of(section))
            for problem in _problems(member, asks_hub)
        ]
    if is_outside(section.kind):
        return KINDS.problems(section.kind) or _settings(section)
    try:
        _try(section, asks_hub)
    except UserError as error:
        return list(error.problems)
    return []


def _try(section: JudgeSection, asks_hub: bool) -> None:
    if not loads_model(section):
        build_judge(section)
        return
    name = section.model or ""
    if not asks_hub and local_folder("judge.model", name) is None:
        return
    folder = find_model(name).folder
    if kind_of(section.kind).loads == "classifier":
        check_reward_model(folder)


def _settings(section: JudgeSection) -> list[str]:
    """What is wrong with the settings of an outside judge, by the signature of its class. The judge is not made: it may
    load a model."""
    takes = inspect.signature(KINDS.resolve(section.kind)).parameters
    names = [name for name, one in takes.items() if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)]
    takes_any = any(one.kind is one.VAR_KEYWORD for one in takes.values())
    problems = [
        f"judge.settings: {section.kind} needs {name}, and has no default for it; set it there."
        for name in names
        if takes[name].default is inspect.Parameter.empty and name not in section.settings
    ]
    for name, value in section.settings.items():
        if name not in names and not takes_any:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Allowed: {', '.join(names) or 'none'}."
            problems.append(f"judge.settings.{name}: {section.kind} does not take it. {hint} Rename or remove it.")
        elif (problem := _mistyped(KINDS.resolve(section.kind), name, value)) is not None:
            problems.append(f"judge.settings.{name}: given {value!r}; {problem}. Correct it, or leave it out.")
    return problems


def _mistyped(judge: Any, name: str, value: Any) -> str | None:
    """Why `value` is not of the type that the class declares for the setting `name`, where it declares one."""
    try:
        hints = {**get_type_hints(judge.__init__), **get_type_hints(judge)}
        if name in hints:
            TypeAdapter(hints[name]).validate_python(value)
    except ValidationError as error:
        return error.errors()[0]["msg"]
    except Exception:  # noqa: BLE001 - types that cannot be read declare nothing
        return None
    return None
