"""`raydpo.align` and `raydpo.dpo`: from a model and data in Python to a run that was trained.

Comes in: objects, and sections of the config as keyword mappings. Goes out: an `AlignmentRun`.
Decision: sections are checked before data are consumed or a model is written. The run directory follows from what decides the
numbers, so that the same call goes on where it was, and another beta is another run.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydpo.config import Config
from raydpo.config.places import is_in_store
from raydpo.errors import ConfigError
from raydpo.front.callbacks import Callback, Callbacks
from raydpo.front.in_memory import entries, is_named
from raydpo.front.loaded_model import is_model_name, model_place
from raydpo.front.peft_lora import lora_section

if TYPE_CHECKING:
    from raydpo.front.alignment_run import AlignmentRun

_INPUTS = "inputs"
_STAND_IN, _UNNAMED = "in-memory", "runs/unnamed"
_ARGUMENTS = {
    "run.dir": "run_dir",
    "model.path": "model",
    "data.train": "data",
    "data.eval": "eval_data",
    "train.lora": "lora",
}


def dpo(
    model: Any,
    data: Any,
    *,
    eval_data: Any = None,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    lora: Any = None,
    tokenizer: Any = None,
    run_dir: str | os.PathLike[str] | None = None,
    callbacks: Callback | Sequence[Callback] = (),
    progress: bool = True,
    **sections: Any,
) -> AlignmentRun:
    """Train `model` on preference pairs with the sigmoid loss of DPO. Returns the finished run, or one that a callback stopped.

    model: a path, a hub id, or a loaded model of transformers or PEFT, which is saved once.
    data, eval_data: pairs (prompt, chosen, rejected: docs/data.md) as a path or several, a list of dicts, a pandas or polars
        frame, a pyarrow table, a datasets.Dataset, a Ray Dataset or an iterator of dicts, which is consumed once.
    beta: strength of the pull to the reference, in 1/nats, above 0.
    label_smoothing: probability that a label is flipped, 0 to below 0.5.
    lora: a peft.LoraConfig, or keys of `train.lora` as a mapping; None trains all weights.
    tokenizer: of a loaded model that does not say where it was loaded from: loaded, or a folder or hub id.
    run_dir: default `runs/<objective>-<digest>`, a digest of what decides the numbers: the same call goes on where it was.
        What was in memory is kept in `inputs` beside it.
    callbacks: functions of one event (raydpo.schema.events); "stop" or StopRun ends the run after its step.
    progress: show it, in a notebook as lines.
    sections: the other sections of a config as mappings, train={"epochs": 2}; further keys of `data` as data_options={...}.
        run={"runtime": ...} is "ray" where RAY_ADDRESS is set or this process has a Ray session, else "local".

    Raises ConfigError or DataError with all problems at once, before anything is started.
    """
    objective = {"name": "dpo", "beta": beta, "label_smoothing": label_smoothing}
    return align(
        model,
        data,
        objective=objective,
        eval_data=eval_data,
        lora=lora,
        tokenizer=tokenizer,
        run_dir=run_dir,
        callbacks=callbacks,
        progress=progress,
        **sections,
    )


def align(
    model: Any,
    data: Any,
    *,
    objective: str | Mapping[str, Any] = "dpo",
    eval_data: Any = None,
    lora: Any = None,
    tokenizer: Any = None,
    run_dir: str | os.PathLike[str] | None = None,
    callbacks: Callback | Sequence[Callback] = (),
    progress: bool = True,
    data_options: Mapping[str, Any] | None = None,
    **sections: Any,
) -> AlignmentRun:
    """Train `model` on `data` with any objective: a name, or a section as of a config, {"name": "ipo", "beta": 0.2}.

    All else is as of `raydpo.dpo`. data_options: further keys of the section `data`. Raises ConfigError or DataError with all
    problems at once, before anything is started.
    """
    from raydpo.front.alignment_run import AlignmentRun

    Callbacks(callbacks, progress=False)  # a wrong one is said before data are consumed
    tree = _tree(objective, lora, run_dir, dict(data_options or {}), sections)
    named = {"train": is_named(data), "eval": eval_data is None or is_named(eval_data)}
    trial = Path(_STAND_IN)
    _with(tree, "model", {"path": os.fspath(model) if is_model_name(model) else _STAND_IN})
    held_out = [] if eval_data is None else entries("eval_data", eval_data, trial) if named["eval"] else [_STAND_IN]
    _with(tree, "data", {"train": entries("data", data, trial) if named["train"] else [_STAND_IN], "eval": held_out})
    _checked(tree)
    inputs = _inputs(tree["run"]["dir"])
    _with(tree, "model", {"path": model_place(model, tokenizer, inputs)})
    _with(tree, "data", {"train": entries("data", data, inputs)})
    _with(tree, "data", {"eval": [] if eval_data is None else entries("eval_data", eval_data, inputs)})
    config = _checked(tree)
    if run_dir is None:
        run = config.run.model_copy(update={"dir": str(Path(_UNNAMED).with_name(_run_name(config)))})
        config = config.model_copy(update={"run": run})
    return AlignmentRun(config).resume(callbacks, progress=progress)


def _tree(
    objective: str | Mapping[str, Any],
    lora: Any,
    run_dir: str | os.PathLike[str] | None,
    data_options: dict[str, Any],
    sections: dict[str, Any],
) -> dict[str, Any]:
    """The sections as given, with what arguments say in them. Raises ConfigError for what is said twice or is no section."""
    problems = _misplaced(sections, data_options)
    tree: dict[str, Any] = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in sections.items()
    }
    tree["objective"] = dict(objective) if isinstance(objective, Mapping) else objective
    tree["data"] = data_options
    run = tree.setdefault("run", {})
    if isinstance(run, dict):
        run["dir"] = os.fspath(run_dir) if run_dir is not None else _UNNAMED
        run.setdefault("runtime", _runtime())
    if (adapter := lora_section(lora)) is not None:
        if not isinstance(tree.setdefault("train", {}), dict) or "lora" in tree["train"]:
            problems.append("lora: given as an argument and in train; one of them is allowed. Nothing was started.")
        else:
            tree["train"]["lora"] = adapter
    if problems:
        raise ConfigError(problems)
    return tree


def _misplaced(sections: Mapping[str, Any], data_options: Mapping[str, Any]) -> list[str]:
    """A sentence for each keyword that is no section but a key of one, or that an argument has."""
    problems = []
    fields = Config.model_fields
    taken = {"objective": "objective", "data": "data_options"}
    for key in sections:
        if key in taken:
            problems.append(f"{key}: no section is given here; write {taken[key]}={{...}}. Nothing was started.")
        elif key not in fields:
            homes = [name for name, found in fields.items() if key in getattr(found.annotation, "model_fields", {})]
            problems.append(
                f"{key}: is no argument and no section; sections are {', '.join(sorted(set(fields) - set(taken)))}."
                + (f" Did you mean {homes[0]}={{{key!r}: ...}}?" if homes else "")
                + " Nothing was started."
            )
    for section, key in (("run", "dir"), ("model", "path")):
        if isinstance(given := sections.get(section), Mapping) and key in given:
            argument = _ARGUMENTS[f"{section}.{key}"]
            problems.append(f"{section}={{{key!r}: ...}}: is given as {argument}=. Nothing was started.")
    for key in sorted({"train", "eval"} & set(data_options)):
        argument = _ARGUMENTS[f"data.{key}"]
        problems.append(f"data_options={{{key!r}: ...}}: is given as {argument}. Nothing was started.")
    return problems


def _runtime() -> str:
    """Ray where there is one (an address, or a session of this process), else this machine alone: a laptop's notebook starts no
    cluster, and a breakpoint works."""
    ray = sys.modules.get("ray")
    has_session = ray is not None and hasattr(ray, "is_initialized") and ray.is_initialized()
    return "ray" if os.environ.get("RAY_ADDRESS") or has_session else "local"


def _with(tree: dict[str, Any], section: str, more: dict[str, Any]) -> None:
    given = tree.get(section, {})
    tree[section] = {**given, **more} if isinstance(given, Mapping) else given


def _checked(tree: dict[str, Any]) -> Config:
    """Raises ConfigError whose sentences name keys as they are written in Python."""
    from raydpo.config.cross_checks import cross_checks

    try:
        config = Config.model_validate(tree)
        if problems := list(cross_checks(config)):
            raise ConfigError(problems)
    except ConfigError as error:
        raise ConfigError([_in_python(problem) for problem in error.problems]) from None
    return config


def _in_python(problem: str) -> str:
    """train.epochs: ... -> train={'epochs': ...}: ...; a key that is an argument by its name."""
    found = re.match(r"(\w+)\.([\w.]+)(?=:)", problem)
    if found is None:
        return problem
    section, key = found.groups()
    rest = problem[found.end() :]
    if section == "objective":
        return f"{key}{rest}"
    argument = next((given for dotted, given in _ARGUMENTS.items() if f"{section}.{key}" == dotted), None)
    name = "data_options" if section == "data" else section
    return f"{argument}{rest}" if argument else f"{name}={{{key!r}: ...}}{rest}"


def _inputs(run_dir: str) -> Path:
    """Where what was in memory is kept: beside the run, which every node sees."""
    return Path(_UNNAMED if is_in_store(run_dir) else run_dir).expanduser().absolute().parent / _INPUTS


def _run_name(config: Config) -> str:
    from raydpo.artifacts import digest_of
    from raydpo.rundir.resume import trajectory

    reads = {"model": config.model.path, "train": config.data.train, "eval": config.data.eval}
    name = re.sub(r"\W+", "_", config.objective.name)
    return f"{name}-{digest_of(trajectory(config, reads))[:12]}"
