"""Sentences about configuration keys: what a key allows, which known key is nearest, what to do.

In: the section class that it is about. Out: text for errors; nothing here raises.
Decision: allowed values are described from the fields themselves, so that no message can go stale.
"""

from __future__ import annotations

import difflib
import json
import types
import typing
from typing import Any, Literal

from pydantic.fields import FieldInfo

from raydpo.config.outside import Door
from raydpo.config.section_base import SectionBase

_ITEMS = {str: "texts", str | dict[str, Any]: "texts or mappings with a path"}
_BOUNDS = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))


def members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the annotation alone."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def section_of(annotation: Any) -> type[SectionBase] | None:
    """The section class inside an annotation (`LoraSection | None`), if there is one."""
    for member in members(annotation):
        if isinstance(member, type) and issubclass(member, SectionBase):
            return member
    return None


def show(value: Any, longest: int = 70) -> str:
    """A value as one would type it in YAML, cut when it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= longest else f"{text[:longest]}..."


def door_of(field: FieldInfo) -> Door | None:
    """The door that a key is, if its value names a part of the program."""
    return next((each for each in field.metadata if isinstance(each, Door)), None)


def _choices(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def allowed(field: FieldInfo) -> str:
    """What a key allows, from its type and bounds: "a whole number >= 1 or null"."""
    if (door := door_of(field)) is not None:
        return f"{'a list of ' if door.is_list else ''}{_choices(door.allowed())}"
    words: list[str] = []
    for member in members(field.annotation):
        if member is type(None):
            words.append("null")
        elif typing.get_origin(member) is Literal:
            words.extend(str(choice) for choice in typing.get_args(member))
        elif typing.get_origin(member) is tuple:
            words.append(f"a list of {_ITEMS.get(typing.get_args(member)[0], 'sections')}")
        elif typing.get_origin(member) is dict:
            keys = typing.get_args(typing.get_args(member)[0])
            values = {int: "whole numbers"}.get(typing.get_args(member)[1], "names of columns")
            words.append(f"a mapping of {_choices(list(keys))} to {values}" if keys else "a mapping")
        elif section_of(member) is not None:
            words.append(f"a section with the keys {', '.join(section_of(member).model_fields)}")  # type: ignore[union-attr]
        else:
            words.append({str: "text", int: "a whole number", float: "a number", bool: "true or false"}[member])
            bounds = [f"{sign} {getattr(m, n):g}" for m in field.metadata for n, sign in _BOUNDS if hasattr(m, n)]
            if any(getattr(m, "min_length", 0) for m in field.metadata):
                words[-1] += " that is not empty"
            if bounds:
                words[-1] += f" {' and '.join(bounds)}"
    return _choices(words)


def remedy(key: str, field: FieldInfo, given: Any) -> str:
    """What to do about a wrong value of `key`."""
    choices = [str(c) for m in members(field.annotation) if typing.get_origin(m) is Literal for c in typing.get_args(m)]
    if (door := door_of(field)) is not None:
        choices = [*door.ours]
        given = next((each for each in given if each not in choices), "") if isinstance(given, list) else given
    near = difflib.get_close_matches(str(given), choices, n=1)
    if near:
        return f"Did you mean {near[0]}?"
    if field.is_required():
        return f"Set {key}: {first_sentence(field)}"
    default = json.loads(json.dumps(field.default))
    return f"Correct it, or leave {key} out for the default, {show(default)}."


def first_sentence(field: FieldInfo) -> str:
    """The first sentence of a field's help."""
    text = " ".join((field.description or "").split())
    return text.split(". ")[0].rstrip(".") + "." if text else ""


def all_keys(root: type[SectionBase], prefix: str = "") -> list[str]:
    """Every key below `root`, dotted: "train.lora.rank", "objective.beta"."""
    found: list[str] = []
    for name in root.key_names():
        field = root.model_fields.get(name)
        section = section_of(field.annotation) if field is not None else None
        found += [f"{prefix}{name}"] if section is None else all_keys(section, f"{prefix}{name}.")
    return found


def nearest(key: str, siblings: list[str], known: list[str]) -> list[str]:
    """Keys of `known` (dotted, all there are) that an unknown dotted `key` may have meant, likeliest first.

    The same word in another section, then a similar word in the same section, then a similar word anywhere.
    """
    section, _, word = key.rpartition(".")
    prefix = f"{section}." if section else ""
    same_word = [other for other in known if other.rpartition(".")[2] == word]
    if same_word:
        return same_word[:3]
    close = difflib.get_close_matches(word, siblings, n=1)
    if close:
        return [prefix + close[0]]
    words = {other.rpartition(".")[2]: other for other in reversed(known)}
    return [words[near] for near in difflib.get_close_matches(word, list(words), n=1, cutoff=0.7)]


def unknown_key(key: str, given: Any, siblings: list[str], near: list[str]) -> str:
    """The sentence for a key that does not exist; `siblings` are the keys that do, in its section, `near` those it may
    have meant."""
    section = key.rpartition(".")[0]
    place = f"in {section}" if section else "at the top"
    hint = f"Did you mean {_choices(near)}?" if near else f"Allowed {place}: {', '.join(siblings)}."
    return f"{key}: no such key, {show(given)} would have been without effect. {hint} Rename or remove it."


def wrong_value(key: str, field: FieldInfo, given: Any) -> str:
    """The sentence for a value that `field` does not take."""
    return f"{key}: given {show(given)}; allowed: {allowed(field)}. {remedy(key, field, given)}"


def not_a_section(key: str, section: type[SectionBase], given: Any) -> str:
    """The sentence for something else where a section belongs."""
    names = section.shown_names()
    text = f"{key}: given {show(given)}; allowed: a section with the keys {', '.join(names)}"
    return f"{text}. Write {key}: {{{names[0]}: ...}}."
