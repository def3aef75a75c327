"""A file of another project as the trainings that it describes.

Comes in: a path. Goes out: `GivenOptions` for every training in it. Decision: what a file is, its ending says (.yaml,
.yml, .json,
.toml, .conf: a config; .sh, .bash, .slurm: a script; .py: the commands in its docstring, without running it).
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raydpo.errors import ConfigError
from raydpo.importing.command_line import read_command
from raydpo.importing.given_options import GivenOption, GivenOptions
from raydpo.importing.plain_yaml import ThereLeaf, Tree, first_line, plain, read_tree
from raydpo.importing.shell_words import commands_of

_CONFIGS = (".yaml", ".yml", ".json", ".toml", ".conf")
_SCRIPTS = (".sh", ".bash", ".slurm", ".sbatch", ".txt")
_MOST_BYTES = 1 << 20


def trainings_in(path: str, variables: Mapping[str, str]) -> list[GivenOptions]:
    """Every training that a file describes. variables: of the shell, which win. ConfigError for what cannot be read."""
    text, ending = _text(path), Path(path).suffix.lower()
    if ending in _CONFIGS:
        return _of_config(text, path, ending, variables)
    if ending == ".py":
        text = _docstring(text, path)
    elif ending not in _SCRIPTS:
        raise ConfigError(
            f"{path}: files ending in {', '.join((*_CONFIGS, *_SCRIPTS, '.py'))} are read, and this is none. Rename "
            "a copy."
        )
    return [given for command in commands_of(text, variables) if (given := read_command(command, path)) is not None]


def tree_of(path: str) -> Tree:
    """A YAML or JSON file as a tree of mappings."""
    return read_tree(_text(path), path)


def _text(path: str) -> str:
    try:
        with Path(path).expanduser().open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ConfigError(f"{path}: it is larger than {_MOST_BYTES:,} bytes. Is this the config of a training?")
        return data.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: it cannot be read: {error.strerror}. Name a file of another project.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: it is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}."
        ) from None


def _of_config(text: str, path: str, ending: str, variables: Mapping[str, str]) -> list[GivenOptions]:
    if ending == ".toml":
        try:
            tree: Tree = {key: ThereLeaf(value, 1) for key, value in tomllib.loads(text).items()}
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: not valid TOML: {error}.") from None
    else:
        tree = read_tree(text, path)
    if isinstance(tree.get("tasks"), ThereLeaf):
        return _of_tasks(tree["tasks"].value, path, variables)
    options = {
        name: GivenOption(name, plain(value), f"{path}:{first_line(value)}", is_default=False)
        for name, value in tree.items()
    }
    return [GivenOptions(options, f"{path}:1")]


def _of_tasks(tasks: Any, path: str, variables: Mapping[str, str]) -> list[GivenOptions]:
    """Commands in the arguments of a job of Beaker."""
    found = []
    for task in tasks if isinstance(tasks, list) else []:
        arguments = task.get("arguments", []) if isinstance(task, dict) else []
        for text in arguments if isinstance(arguments, list) else [arguments]:
            commands = commands_of(" ".join(str(text).split()), variables)
            found += [given for command in commands if (given := read_command(command, path)) is not None]
    return found


def _docstring(text: str, path: str) -> str:
    """The docstring with the line that it begins at kept: lines before it are empty."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid Python: {error}.") from None
    first = body[0] if body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return "\n" * (first.lineno - 1) + first.value.value
    raise ConfigError(f"{path}: it has no docstring with a command. Write the command into a file that ends in .sh.")
