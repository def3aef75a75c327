"""A tree of written values against a section class: every problem as a sentence with its place, and what is left.

Comes in: an `Entry` tree. Goes out: (where, sentence) pairs, the section if nothing is wrong, else what is good of it.
Decision: keys are compared with the class first, then pydantic validates what is left, twice where keys had to be taken out:
what is wrong between good keys is reported along with a broken one. A problem that only follows from a broken key is not.
"""

from __future__ import annotations

import math
import re
import typing
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from raydpo.config.entry import Entry
from raydpo.config.problems import (
    all_keys,
    allowed,
    door_of,
    members,
    nearest,
    not_a_section,
    remedy,
    section_of,
    show,
    unknown_key,
    wrong_value,
)
from raydpo.config.section_base import SectionBase, as_pydantic_says

Clashes = list[tuple[SectionBase, str]]


class TreeCheck:
    """The check of one tree.

    name: of the file, which stands for a place where a key was not written.
    problems: (where, sentence), in the order they were found.
    broken: dotted keys whose value is not known, because it is wrong or may stand under a misspelt key.
    """

    def __init__(self, root: type[SectionBase], tree: Entry, name: str) -> None:
        self.root, self.name = root, name
        self.tree = root.spelled_out(tree)
        self.problems: list[tuple[str, str]] = []
        self.broken: set[str] = set()
        self._wrong: set[str] = set()
        self._values: dict[str, Any] | None = None
        self._known: list[str] = []

    def walk(self) -> bool:
        """Compare every key with its field. Whether nothing was found."""
        if isinstance(self.tree.value, dict):
            self._values = self._children(self.root, self.tree.value, "")
            for key, field in self.root.model_fields.items():
                if field.is_required() and section_of(field.annotation) is not None:
                    self._values.setdefault(key, {})  # say which of its keys is missing
        else:
            names = ", ".join(self.root.shown_names())
            self._add("", self.tree.where, f"given {show(self.tree.value)}; allowed: a section with the keys {names}.")
        return not self.problems

    def run(self) -> SectionBase | None:
        """What is good of a tree that was walked, broken keys taken out: reading one is an AttributeError. None: nothing is."""
        if self._values is None:
            return None
        num_walked = len(self.problems)
        found = self._validated(self._values)
        if not isinstance(found, BaseModel):
            for error in found:
                self._report(error["loc"], error)
        if self.broken or not isinstance(found, BaseModel):
            found = self._validated(self._trimmed(self.root, self._values, ""))
        self.problems[num_walked:] = sorted(self.problems[num_walked:], key=lambda problem: self._place(problem[1]))
        return self._without_broken(found, "") if isinstance(found, SectionBase) else None

    def where(self, key: str) -> str:
        """Where dotted `key` was written; the file, or the section, where it was not."""
        entry, where = self.tree, self.name
        for part in key.split("."):
            if not isinstance(entry.value, dict) or part not in entry.value:
                break
            entry = entry.value[part]
            where = entry.where
        return where if entry is not self.tree else self.name

    def _place(self, text: str) -> int:
        """Where the key that a sentence begins with comes in the class."""
        names = self.root.key_names()
        word = re.split(r"\W", text, maxsplit=1)[0]
        return names.index(word) if word in names else len(names)

    def _add(self, key: str, where: str, text: str) -> None:
        if (where, text) not in self.problems:
            self.problems.append((where, text))
        if key:
            self.broken.add(key)
            self._wrong.add(key)

    def _near(self, key: str, siblings: list[str]) -> list[str]:
        self._known = self._known or all_keys(self.root)
        return nearest(key, siblings, self._known)

    def _children(self, model: type[SectionBase], children: dict[str, Entry], prefix: str) -> dict[str, Any]:
        def add(key: str, where: str, text: str) -> None:
            self._add(prefix + key, where, text)

        good = model.examine(children, prefix, add, self._near)
        if good is not None:
            return good
        values: dict[str, Any] = {}
        for key, child in children.items():
            dotted, field = prefix + key, model.model_fields.get(key)
            if field is None:
                near = self._near(dotted, model.key_names())
                self._add("", child.where, unknown_key(dotted, child.plain(), model.key_names(), near))
                self.broken.update(near)
            elif (section := section_of(field.annotation)) is None:
                self._leaf(values, key, dotted, child, field)
            else:
                self._section(values, key, dotted, section.spelled_out(child), field, section)
        return values

    def _section(
        self,
        values: dict[str, Any],
        key: str,
        dotted: str,
        entry: Entry,
        field: FieldInfo,
        section: type[SectionBase],
    ) -> None:
        if isinstance(entry.value, dict):
            values[key] = self._children(section, entry.value, f"{dotted}.")
        elif isinstance(entry.value, section):
            values[key] = entry.value
        elif entry.value is not None:
            self._add(dotted, entry.where, not_a_section(dotted, section, entry.value))
        elif type(None) in members(field.annotation):
            values[key] = None

    def _leaf(self, values: dict[str, Any], key: str, dotted: str, entry: Entry, field: FieldInfo) -> None:
        kinds = members(field.annotation)
        value = entry.plain()
        takes_text = str in kinds
        number = value if isinstance(value, float) else _number(value)
        if takes_text and entry.text is not None and isinstance(value, int | float) and not isinstance(value, bool):
            value = entry.text  # 1e10 is a fine name of a branch
        if (isinstance(value, bool) and bool not in kinds) or (
            not takes_text and number is not None and not math.isfinite(number)
        ):
            self._add(dotted, entry.where, wrong_value(dotted, field, value))
        else:
            values[key] = value

    def _validated(self, values: dict[str, Any]) -> SectionBase | list[Any]:
        """The section that pydantic makes of `values`, clashes reported; or what it says against them."""
        clashes: Clashes = []
        try:
            with as_pydantic_says():
                found = self.root.model_validate(values, context=clashes)
        except ValidationError as error:
            return error.errors()
        self._report_clashes(found, "", clashes)
        return found

    def _report_clashes(self, section: SectionBase, key: str, clashes: Clashes) -> None:
        for owner, text in clashes:
            if owner is section:
                self._report_clash(key, text)
        for name, value in section:
            if isinstance(value, SectionBase):
                self._report_clashes(value, f"{key}.{name}" if key else name, clashes)

    def _report_clash(self, key: str, message: str) -> None:
        """A problem between keys of one section: name those that were given, at the line of the first."""
        prefix = f"{key}." if key else ""
        words = {broken.removeprefix(prefix) for broken in self._wrong if broken.startswith(prefix)}
        if any(re.search(rf"\b{re.escape(word)}\b", message) for word in words if "." not in word):
            return
        entry = self._entry(key)
        children = entry.value if entry is not None and isinstance(entry.value, dict) else {}
        named = {k: e for k, e in children.items() if re.search(rf"\b{re.escape(k)}\b", message)}
        given = ", ".join(f"{k}: {show(e.plain())}" + (f" ({e.where})" if e.where else "") for k, e in named.items())
        where = next((e.where for e in named.values()), self.where(key))
        about = f"{key}: {message}" if key else message
        self._add("", where, about + (f"; given {given}." if given else "."))

    def _entry(self, key: str) -> Entry | None:
        entry: Entry | None = self.tree
        for part in key.split(".") if key else ():
            entry = entry.value.get(part) if entry is not None and isinstance(entry.value, dict) else None
        return entry

    def _report(self, loc: tuple[int | str, ...], error: Any) -> None:
        """Word one pydantic error."""
        model: type[SectionBase] = self.root
        path: list[str] = []
        for part in loc:
            field = model.model_fields.get(str(part))
            if field is None:
                break
            path.append(str(part))
            section = section_of(field.annotation)
            if section is None:
                self._report_key(".".join(path), field, error)
                return
            model = section
        message = str(error.get("ctx", {}).get("error", error["msg"]))
        self._report_clash(".".join(path), message)

    def _report_key(self, key: str, field: FieldInfo, error: Any) -> None:
        if error["type"] == "missing":
            if self._is_broken(key):
                self._wrong.add(key)  # it may stand under a misspelt key
            else:
                text = f"{key} is missing; allowed: {allowed(field)}. {remedy(key, field, None)}"
                self._add(key, self.where(key.rpartition(".")[0]), text)
        else:
            entry = self._entry(key)
            given = entry.plain() if entry is not None else field.default
            self._add(key, self.where(key), wrong_value(key, field, given))

    def _is_broken(self, key: str) -> bool:
        parts = key.split(".")
        return any(".".join(parts[: end + 1]) in self.broken for end in range(len(parts)))

    def _trimmed(self, model: type[SectionBase], values: dict[str, Any], prefix: str) -> dict[str, Any]:
        """`values` without what is wrong; required keys get something that pydantic takes, and are broken."""
        kept: dict[str, Any] = {}
        for key, value in values.items():
            field = model.model_fields.get(key)
            section = section_of(field.annotation) if field is not None else None
            if prefix + key in self._wrong:
                continue
            kept[key] = (
                self._trimmed(section, value, f"{prefix}{key}.") if section and isinstance(value, dict) else value
            )
        for key, field in model.model_fields.items():
            if field.is_required() and key not in kept:
                section = section_of(field.annotation)
                kept[key] = _stand_in(field) if section is None else self._trimmed(section, {}, f"{prefix}{key}.")
                self.broken.add(prefix + key)
        return kept

    def _without_broken(self, section: SectionBase, prefix: str) -> SectionBase:
        copy = section.model_copy()
        broken = {key.removeprefix(prefix) for key in self.broken if key.startswith(prefix)}
        for name, value in list(copy.__dict__.items()):
            if name in broken:
                del copy.__dict__[name]
            elif isinstance(value, SectionBase):
                inner = {key.removeprefix(f"{name}.") for key in broken if key.startswith(f"{name}.")}
                if value.is_spoilt_by(inner):
                    del copy.__dict__[name]
                else:
                    copy.__dict__[name] = self._without_broken(value, f"{prefix}{name}.")
        return copy


def _stand_in(field: FieldInfo) -> Any:
    """A value that the field takes; it is taken out again before anybody reads it."""
    if (door := door_of(field)) is not None:
        return next(iter(door.ours))
    first = members(field.annotation)[0]
    if typing.get_origin(first) is typing.Literal:
        return typing.get_args(first)[0]
    return ("-",) if typing.get_origin(first) is tuple else "-"


def _number(value: Any) -> float | None:
    try:
        return float(value) if isinstance(value, str) else None
    except ValueError:
        return None
