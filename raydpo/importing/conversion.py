"""From a file of another project to a run.yaml of ours: order and nothing else.

Comes in: a path and what the user said beside it. Goes out: `Imported`: the YAML, the config that it is, and the account of all
options. Raises ConfigError with all problems at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raydpo.config.cross_checks import cross_checks
from raydpo.config.render import commented
from raydpo.config.sections import Config
from raydpo.config.source import read_override
from raydpo.errors import ConfigError
from raydpo.importing.draft import ALLOWED, IDLE, LOST, MAPPED, SAME, UNKNOWN, YOURS, Draft, Fated
from raydpo.importing.given_options import GivenOptions
from raydpo.importing.projects import project_of
from raydpo.importing.read_theirs import trainings_in

SHOWN = (MAPPED, SAME, YOURS, IDLE, ALLOWED, LOST, UNKNOWN)
"""Fates in the order of the account."""
_WHERE_TO = "runs/imported"


@dataclass(frozen=True)
class ImportWishes:
    """What the user says beside the file. command: which of several trainings in it, from 1."""

    project: str | None = None
    trainer: str | None = None
    processes: int | None = None
    allowed: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    command: int | None = None
    overrides: Sequence[str] = ()


@dataclass(frozen=True)
class Imported:
    """text: the run.yaml. fates: of every option that was written, and of defaults that count. differences: sentences."""

    project: str
    text: str
    values: Mapping[str, Any]
    fates: tuple[Fated, ...]
    differences: tuple[str, ...]


def convert(path: str, wishes: ImportWishes) -> Imported:
    """The run.yaml of the training in `path`. ConfigError with every problem."""
    given = _the_one(trainings_in(path, wishes.variables), path, wishes.command)
    project = project_of(given, wishes.project)
    if project.unfold is not None:
        given = project.unfold(given)
    yours, problems = _overrides(wishes.overrides)
    draft = Draft(given, project.defaults, project.title, wishes.allowed, yours)
    project.compose(draft, wishes.processes, wishes.trainer)
    draft.follow(project.table)
    if unused := [name for name in wishes.allowed if name not in draft.options]:
        problems += [f"--allow {name}: the file has no such option; leave it out." for name in unused]
    problems += draft.problems
    values, origins = _lines(draft, yours)
    problems += _missing(values, path)
    if not problems:
        problems += _wrong(values)
    if problems:
        raise ConfigError(problems)
    text = _header(project.title, path, draft) + commented(values, origins)
    return Imported(project.title, text, values, _account(draft), tuple(draft.differences))


def _the_one(found: list[GivenOptions], path: str, number: int | None) -> GivenOptions:
    if not found:
        raise ConfigError(
            f"{path}: no preference training is in it. Looked for are dpo.py, kto.py, orpo.py, cpo.py, "
            "dpo_tune_cache.py, train_dpo, "
            "swift rlhf, megatron rlhf, trl dpo, trl kto."
        )
    if number is None and len(found) > 1:
        places = ", ".join(f"{at} ({given.where})" for at, given in enumerate(found, start=1))
        raise ConfigError(f"{path}: {len(found)} trainings are in it: {places}. Choose one: --command 1.")
    if number is not None and not 1 <= number <= len(found):
        raise ConfigError(f"--command {number}: {path} has {len(found)} of them; 1 to {len(found)} are allowed.")
    return found[(number or 1) - 1]


def _overrides(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    found, problems = {}, []
    for word in words:
        read = read_override(word)
        if isinstance(read, str):
            problems.append(read)
        else:
            found[".".join(read[0])] = read[1].plain()
    return found, problems


def _lines(draft: Draft, yours: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The tree of ours, and for each dotted key where it is from."""
    flat = {key: (line.value, line.origin) for key, line in draft.lines.items() if not draft.is_yours(key)}
    flat |= {key: (value, "command line") for key, value in yours.items()}
    flat.setdefault("run.dir", (_WHERE_TO, "not in their file"))
    tree: dict[str, Any] = {name: {} for name in Config.model_fields}
    origins: dict[str, str] = {}
    for key, (value, origin) in flat.items():
        place = tree
        *above, last = key.split(".")
        for name in above:
            place = place.setdefault(name, {})
        place[last] = value
        _mark(key, value, origin, origins)
    return {name: section for name, section in tree.items() if section not in ({}, None)}, origins


def _mark(key: str, value: Any, origin: str, origins: dict[str, str]) -> None:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            _mark(f"{key}.{name}", inner, origin, origins)
    else:
        origins[key] = " ".join(origin.split())


def _missing(values: Mapping[str, Any], path: str) -> list[str]:
    problems = []
    if not values.get("model", {}).get("path"):
        problems.append(f"{path}: no model is named in it; give model.path=FOLDER_OR_HUB_ID.")
    if not values.get("data", {}).get("train"):
        problems.append(f"{path}: no training data are named in it; give data.train='[pairs.jsonl]'.")
    return problems


def _wrong(values: Mapping[str, Any]) -> list[str]:
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        return [
            f"{'.'.join(map(str, each['loc']))}: {each['msg']}. This is what came of their file; give a value of "
            "your own: KEY=VALUE."
            for each in error.errors(include_url=False)
        ]
    except ConfigError as error:
        return list(error.problems)
    return cross_checks(config, "train")


def _header(title: str, path: str, draft: Draft) -> str:
    left_out = [f"{each.option.shown}: {each.text}" for each in draft.fates.values() if each.fate == ALLOWED]
    lines = [
        f"# Made by raydpo import of {Path(path).name} ({title}). Each line says which option of theirs it is from."
    ]
    lines += [f"# Not quite theirs: {text}." for text in draft.differences]
    lines += [f"# Left out, as allowed: {text}." for text in left_out]
    return "".join(f"{' '.join(line.split())}\n" for line in lines)


def _account(draft: Draft) -> tuple[Fated, ...]:
    counted = (MAPPED, YOURS, ALLOWED, LOST, UNKNOWN)
    kept = [each for each in draft.fates.values() if not each.option.is_default or each.fate in counted]
    return tuple(sorted(kept, key=lambda each: SHOWN.index(each.fate)))
