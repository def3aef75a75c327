"""Read a run's YAML file and the overrides of the command line into a `Config` that knows where each value is from.

In: a path and words `section.key=value` (a later word wins, and wins over the file; values are YAML).
Out: `Loaded`: the validated config and, for each key, "run.yaml:3", "command line" or "default".
Decision: every problem is collected before anything is raised; the error lists them in the order of the file.
Relative paths inside the config stay as they are: relative to where the command is run, not to the file.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from raydpo.config.objective_check import check_objective, readable
from raydpo.config.objective_door import row_of
from raydpo.config.outside import is_outside
from raydpo.config.problems import allowed, members, nearest, remedy, section_of, show, unknown_key
from raydpo.config.sections import Config, ObjectiveSection
from raydpo.config.source import COMMAND_LINE, Entry, read_override, read_yaml
from raydpo.errors import ConfigError

__all__ = ["Loaded", "load"]

_EXAMPLE = "run: {dir: runs/first}, model: {path: ...}, data: {train: [pairs.jsonl]}"


@dataclass(frozen=True)
class Loaded:
    """A config and, for each dotted key of it, "file:line", "command line" or "default"."""

    config: Config
    origins: Mapping[str, str]


def load(path: str | Path, overrides: Sequence[str] = ()) -> Loaded:
    """Read `path` (YAML), apply `overrides` ("section.key=value") and validate.

    Raises ConfigError with every problem: file and line or "command line", what was given, what is allowed, what to do.
    """
    name = str(path)
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
    tree = _spell_out_objective(tree)
    for word in overrides:
        parsed = read_override(word)
        if isinstance(parsed, str):
            problems.append((COMMAND_LINE, parsed))
        else:
            tree = _spell_out_objective(_with(tree, *parsed))
    check = _Check(name, tree, problems)
    config = check.config()
    if config is None or problems:
        raise ConfigError(_sorted(dict.fromkeys(problems)))
    return Loaded(config, check.origins(config))


def _text(path: Path, name: str) -> str:
    if path.is_dir():
        found = sorted(p.name for p in path.iterdir() if p.suffix in (".yaml", ".yml"))
        inside = f" In it: {', '.join(found[:5])}." if found else ""
        raise ConfigError(f"{name}: this is a folder; allowed: a YAML file.{inside} Give the path of the file.")
    if not path.exists():
        raise ConfigError(_missing_file(path, name))
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{name}: not UTF-8 text (byte {error.object[error.start]:#04x} at offset {error.start}); "
            "allowed: a YAML file in UTF-8. Save it as UTF-8."
        ) from None
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror}. Check the path and its permissions.") from None


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


def _spell_out_objective(tree: Entry) -> Entry:
    """`objective: dpo` is short for `objective: {name: dpo}`."""
    entry = tree.value.get("objective")
    if entry is None or not isinstance(entry.value, str):
        return tree
    full = Entry({"name": entry}, entry.where)
    return Entry({**tree.value, "objective": full}, tree.where)


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


class _Check:
    """Walks the tree beside the sections, then lets pydantic validate what is left, and words what it says."""

    def __init__(self, name: str, tree: Entry, problems: list[tuple[str, str]]) -> None:
        self.name, self.tree, self.problems = name, tree, problems

    def config(self) -> Config | None:
        """The validated config, or None with `problems` longer than before."""
        values = self._section(Config, self.tree, "")
        for key, field in Config.model_fields.items():
            if field.is_required():
                values.setdefault(key, {})
        try:
            return Config.model_validate(values)
        except ValidationError as error:
            broken = {self._report(each["loc"], each) for each in error.errors()} - {""}
        self._cross_checks(values, broken)
        return None

    def origins(self, config: Config) -> dict[str, str]:
        """Where each value of `config` was written."""
        found: dict[str, str] = {}

        def visit(value: Any, key: str, entry: Entry | None) -> None:
            children = entry.value if entry is not None and isinstance(entry.value, dict) else {}
            if isinstance(value, BaseModel):
                for child, inner in value:
                    visit(inner, f"{key}.{child}" if key else child, children.get(child))
            else:
                found[key] = entry.where if entry is not None else "default"

        visit(config, "", self.tree)
        return found

    def _add(self, where: str, text: str) -> None:
        self.problems.append((where, text))

    def _section(self, model: type[BaseModel], entry: Entry, prefix: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, child in entry.value.items():
            dotted = prefix + key
            field = model.model_fields.get(key)
            if field is None:
                self._add(child.where, unknown_key(dotted, child.plain(), list(model.model_fields)))
                continue
            section = section_of(field.annotation)
            if section is None:
                self._leaf(values, key, dotted, child, field)
            elif child.value is None:
                if type(None) in members(field.annotation):
                    values[key] = None
            elif not isinstance(child.value, dict):
                names = list(section.model_fields) if section is not ObjectiveSection else ["name", "beta", "..."]
                text = f"given {show(child.value)}; allowed: a section with the keys {', '.join(names)}"
                self._add(child.where, f"{dotted}: {text}. Write {dotted}: {{{names[0]}: ...}}.")
            elif section is ObjectiveSection:
                self._objective(values, key, child)
            else:
                values[key] = self._section(section, child, f"{dotted}.")
        return values

    def _leaf(self, values: dict[str, Any], key: str, dotted: str, entry: Entry, field: Any) -> None:
        kinds = members(field.annotation)
        value = entry.plain()
        takes_text = str in kinds
        number = value if isinstance(value, float) else _number(value)
        if takes_text and entry.text is not None and isinstance(value, int | float) and not isinstance(value, bool):
            value = entry.text  # 1e10 is a fine name of a branch
        if (isinstance(value, bool) and bool not in kinds) or (
            not takes_text and number is not None and not math.isfinite(number)
        ):
            self._add(entry.where, _wrong(dotted, field, value))
        else:
            values[key] = value

    def _objective(self, values: dict[str, Any], key: str, entry: Entry) -> None:
        """Ask the table about the name, then about each parameter alone, so that each has its own line."""
        children: dict[str, Entry] = entry.value
        name = children["name"].plain() if "name" in children else "dpo"
        if (problem := _refusal({"name": name})) is not None:
            todo = "" if is_outside(name) else ". Write one of the allowed names."
            self._add(children["name"].where, f"{key}.{problem}{todo}")
            return
        options = readable(row_of(name))
        good: dict[str, Any] = {"name": name}
        for child, inner in children.items():
            problem = _refusal({"name": name, child: inner.plain()}) if child != "name" else None
            if problem is None:
                good[child] = inner.plain()
            elif child == "plus":
                self._add(inner.where, f"{key}.{problem}. Correct the terms, or leave plus out.")
            elif child in options:
                default = options[child].shown()
                self._add(inner.where, f"{key}.{problem}. Correct it, or leave it out for the default, {default}.")
            else:
                near = [k for k in nearest(f"{key}.{child}", list(options)) if k != f"{key}.{child}"]
                hint = f" Did you mean {near[0]}?" if near else ""
                names = ", ".join(["name", *options, "plus"])
                self._add(inner.where, f"{key}.{problem}.{hint} Allowed for {name}: {names}. Rename or remove it.")
        values[key] = good

    def _report(self, loc: tuple[int | str, ...], error: Any) -> str:
        """Word one pydantic error. Returns the dotted key, empty when it is not about a single one."""
        model: type[BaseModel] = Config
        entry: Entry | None = self.tree
        where = self.name
        path: list[str] = []
        for part in loc:
            field = model.model_fields.get(str(part))
            if field is None:
                break
            path.append(str(part))
            entry = entry.value.get(part) if entry is not None and isinstance(entry.value, dict) else None
            where = entry.where if entry is not None else where
            section = section_of(field.annotation)
            if section is None:
                key = ".".join(path)
                if error["type"] == "missing":
                    self._add(where, f"{key} is missing; allowed: {allowed(field)}. {remedy(key, field, None)}")
                else:
                    self._add(where, _wrong(key, field, entry.plain() if entry is not None else field.default))
                return key
            model = section
        self._add(*self._cross_field(".".join(path), where, entry, error))
        return ""

    def _cross_field(self, key: str, where: str, entry: Entry | None, error: Any) -> tuple[str, str]:
        """A problem between keys of one section: name those that were given, at the line of the first."""
        message = str(error.get("ctx", {}).get("error", error["msg"]))
        children = entry.value if entry is not None and isinstance(entry.value, dict) else {}
        named = {k: e for k, e in children.items() if re.search(rf"\b{re.escape(k)}\b", message)}
        given = ", ".join(f"{k}: {show(e.plain())} ({e.where})" for k, e in named.items())
        where = next((e.where for e in named.values()), where)
        return where, f"{key}: {message}" + (f"; given {given}." if given else ".")

    def _cross_checks(self, values: dict[str, Any], broken: set[str]) -> None:
        """Problems between keys that pydantic did not look for, because another key of the section was wrong."""
        trimmed = {
            section: {k: v for k, v in inner.items() if f"{section}.{k}" not in broken}
            if isinstance(inner, dict)
            else inner
            for section, inner in values.items()
            if section not in broken
        }
        try:
            Config.model_validate(trimmed)
        except ValidationError as error:
            for each in error.errors():
                message = str(each.get("ctx", {}).get("error", ""))
                about_broken = any(re.search(rf"\b{key.rpartition('.')[2]}\b", message) for key in broken)
                if each["type"] == "value_error" and not about_broken:
                    self._report(each["loc"], each)


def _refusal(objective: dict[str, Any]) -> str | None:
    try:
        check_objective(objective)
    except ValueError as error:
        return str(error)
    return None


def _wrong(key: str, field: Any, given: Any) -> str:
    return f"{key}: given {show(given)}; allowed: {allowed(field)}. {remedy(key, field, given)}"


def _number(value: Any) -> float | None:
    try:
        return float(value) if isinstance(value, str) else None
    except ValueError:
        return None
