"""A YAML file and the overrides of the command line, read as a section class that is handed in.

In: a path and words `section.key=value` (a later word wins, and wins over the file; values are YAML).
Out: `Loaded`: the validated section and, for each key, "run.yaml:3", "command line" or "default".
Decision: every problem is collected before anything is raised, those between sections too; the error lists them in the order
of the file. Relative paths inside stay as they are: relative to where the command is run, not to the file.
"""

from __future__ import annotations

import difflib
import re
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from raydpo.config.entry import COMMAND_LINE, Entry
from raydpo.config.problems import section_of, show
from raydpo.config.section_base import SectionBase
from raydpo.config.source import read_override, read_yaml
from raydpo.config.tree_check import TreeCheck
from raydpo.errors import ConfigError

S = TypeVar("S", bound=SectionBase)
Between = Callable[[S], Iterable[str]]
"""What is wrong between good keys: sentences that begin with a dotted key."""

_MOST_CHARS = 1 << 24
"""More than is ever parsed, of a file that may be anything."""
_EXAMPLE = "run: {dir: runs/first}, model: {path: ...}, data: {train: [pairs.jsonl]}"


@dataclass(frozen=True)
class Loaded(Generic[S]):
    """A config and, for each dotted key of it, "file:line", "command line" or "default"."""

    config: S
    origins: Mapping[str, str]


def load_as(
    root: type[S], path: str | Path, overrides: Sequence[str], between: Between[S], beyond: Between[S] | None = None
) -> Loaded[S]:
    """Read `path` (YAML), apply `overrides` ("section.key=value") and validate.

    between: checks of every config; of one with problems, of what is left of it, where reading a broken key is an
        AttributeError.
    beyond: checks only of a config with problems, for what is checked of a good one later.

    Raises ConfigError with every problem: file and line or "command line", what was given, what is allowed, what to do.
    """
    name = str(path)
    tree, problems = _read(root, path, name, overrides)
    check = TreeCheck(root, tree, name)
    check.walk()
    config = check.run()
    problems += check.problems
    if isinstance(config, root):
        said = list(between(config))
        if beyond is not None and (problems or said):
            said += [text for text in beyond(config) if text not in said]
        problems += [(check.where(_first_key(text)), text) for text in said]
    if problems or not isinstance(config, root):
        raise ConfigError(_sorted(dict.fromkeys(problems)))
    return Loaded(config, _origins(config, tree))


def _read(
    root: type[SectionBase], path: str | Path, name: str, overrides: Sequence[str]
) -> tuple[Entry, list[tuple[str, str]]]:
    """The tree of the file with the overrides in it, and what is wrong with how they are written."""
    tree, problems = read_yaml(_text(Path(path).expanduser(), name), name)
    if problems and not tree.value:
        raise ConfigError(_sorted(problems))
    if tree.value is None:
        raise ConfigError(f"{name}: the file is empty. A run needs at least {_EXAMPLE}.")
    if not isinstance(tree.value, dict):
        raise ConfigError(
            f"{tree.where}: the file holds {show(tree.value)}; allowed: sections such as run, model and data. "
            f"Write at least {_EXAMPLE}."
        )
    tree = _spelled_out(root, tree)
    for word in overrides:
        parsed = read_override(word)
        if isinstance(parsed, str):
            problems.append((COMMAND_LINE, parsed))
        else:
            tree = _spelled_out(root, _with(tree, *parsed))
    return tree, problems


def _first_key(text: str) -> str:
    """The dotted key that a sentence begins with."""
    found = re.match(r"\w+(\.\w+)*", text)
    return found[0] if found else ""


def _text(path: Path, name: str) -> str:
    if "\0" in name:
        raise ConfigError(f"{name!r}: a NUL character, which no path has. Give the path of a YAML file.")
    if path.is_dir():
        found = sorted(p.name for p in path.iterdir() if p.suffix in (".yaml", ".yml"))
        inside = f" In it: {', '.join(found[:5])}." if found else ""
        raise ConfigError(f"{name}: this is a folder; allowed: a YAML file.{inside} Give the path of the file.")
    if not path.exists():
        raise ConfigError(_missing_file(path, name))
    try:
        _refuse_endless(path, name)
        with path.open(encoding="utf-8-sig") as file:
            return file.read(_MOST_CHARS)
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{name}: not UTF-8 text (byte {error.object[error.start]:#04x} at offset {error.start}); "
            "allowed: a YAML file in UTF-8. Save it as UTF-8."
        ) from None
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror}. Check the path and its permissions.") from None


def _refuse_endless(path: Path, name: str) -> None:
    """Refuse what may never end; standard input, and what a shell puts in its place (`<(...)`), may be read."""
    mode = path.stat().st_mode
    kinds = (
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    )
    what = next((what for is_one, what in kinds if is_one(mode)), None)
    if what is not None and not str(path).startswith(("/dev/fd/", "/dev/stdin", "/proc/self/fd/")):
        raise ConfigError(f"{name}: this is {what}; allowed: a YAML file. Give the path of a file.")


def _missing_file(path: Path, name: str) -> str:
    if "=" in name:
        order = "Write the file first, then overrides: run.yaml section.key=value."
        return f"{name}: given where the path of a YAML file belongs. {order}"
    near: list[str] = []
    if path.parent.is_dir():
        present = [p.name for p in path.parent.iterdir() if p.is_file()]
        yamls = [p for p in present if p.endswith((".yaml", ".yml"))]
        near = difflib.get_close_matches(path.name, present, n=3, cutoff=0.7) or sorted(yamls)[:5]
    hint = f" There is {', '.join(near)}." if near else ""
    return f"{name}: there is no such file (looked for {path.absolute()}).{hint} Give the path of a YAML file."


def _spelled_out(root: type[SectionBase], tree: Entry) -> Entry:
    """`tree` with sections that were written short spelled out, so that an override can reach into them."""
    children = dict(tree.value)
    for key, entry in children.items():
        field = root.model_fields.get(key)
        section = section_of(field.annotation) if field is not None else None
        children[key] = entry if section is None else section.spelled_out(entry)
    return Entry(children, tree.where)


def _with(tree: Entry, path: tuple[str, ...], new: Entry) -> Entry:
    """`tree` with `new` at `path`. A list or a scalar on the way is left for the check to report."""
    if not path:
        return new
    if tree.value is not None and not isinstance(tree.value, dict):
        return tree
    children: dict[str, Entry] = tree.value or {}
    child = children.get(path[0], Entry(None, new.where))
    return Entry({**children, path[0]: _with(child, path[1:], new)}, tree.where, tree.text)


def _sorted(problems: Iterable[tuple[str, str]]) -> list[str]:
    """Sentences in the order of the file, then those of the command line."""

    def place(problem: tuple[str, str]) -> tuple[int, int]:
        line = re.search(r":(\d+)$", problem[0])
        return (problem[0] == COMMAND_LINE, int(line[1]) if line else 0)

    return [f"{where}: {text}" for where, text in sorted(problems, key=place)]


def _origins(config: BaseModel, tree: Entry) -> dict[str, str]:
    """Where each value of `config` was written."""
    found: dict[str, str] = {}

    def visit(value: Any, key: str, entry: Entry | None) -> None:
        children = entry.value if entry is not None and isinstance(entry.value, dict) else {}
        if isinstance(value, BaseModel):
            for child, inner in value:
                visit(inner, f"{key}.{child}" if key else child, children.get(child))
        else:
            found[key] = entry.where if entry is not None else "default"

    visit(config, "", tree)
    return found
