"""The objective section of a config against the table: every option is read by its objective, within its bounds.

In: what was written under `objective`. Out: the same with defaults filled in, and terms sorted into parameters and
modifiers; or ValueError with all that is wrong and what is allowed. Torch-free, like the table.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from raydpo.config.modifier_table import modifiers_of
from raydpo.config.objective_door import class_of, row_of
from raydpo.config.objective_row import Flag, ObjectiveRow, Parameter, Term
from raydpo.config.objective_table import OBJECTIVES
from raydpo.config.outside import FORM, is_outside
from raydpo.errors import ConfigError


def readable(row: ObjectiveRow) -> dict[str, Parameter | Flag]:
    """Every option that `row` reads: its parameters, then its modifiers."""
    return {**row.parameters, **modifiers_of(row)}


def readers(option: str) -> str:
    """Who reads `option`, in words for an error."""
    names = [row.name for row in OBJECTIVES.values() if option in readable(row)]
    return f"objectives that read it: {', '.join(names)}" if names else "no objective reads it"


def check_objective(value: Any) -> dict[str, Any]:
    """Validate `{name, **options, plus: [{name, **options}, ...]}` and fill in defaults. Raises ValueError naming what is
    allowed."""
    given = {"name": value} if isinstance(value, str) else dict(getattr(value, "__dict__", None) or value or {})
    given |= getattr(value, "__pydantic_extra__", None) or {}
    plus = given.pop("plus", ())
    if not isinstance(plus, list | tuple):
        raise ValueError(f"plus: {plus!r} is not a list; allowed: terms such as [{{name: nll, weight: 0.2}}]")
    checked = _check_term(given)
    terms, problems = [], []
    for number, term in enumerate(plus, start=1):
        try:
            terms.append(_check_added(term, row_of(checked["name"])))
        except ValueError as error:
            problems.append(f"plus: term {number}: {error}")
    names = [checked["name"], *(term["name"] for term in terms)]
    problems += [f"plus: {name} is there more than once" for name in dict.fromkeys(names) if names.count(name) > 1]
    if problems:
        raise ValueError("; ".join(problems))
    return {**checked, "plus": terms}


def make_term(checked: Mapping[str, Any]) -> Term:
    """What `check_objective` made of one term, sorted into parameters and modifiers."""
    row = row_of(checked["name"])
    modifiers = {name: checked[name] for name in modifiers_of(row) if name != "weight"}
    parameters = {name: checked[name] for name in row.parameters}
    return Term(row, checked["weight"], parameters, modifiers, class_of(row.name))


def _check_term(given: dict[str, Any]) -> dict[str, Any]:
    name = given.pop("name", "dpo")
    row = _row(name)
    options, problems = readable(row), []
    for key, number in given.items():
        if key not in options:
            problems.append(f"{key}: objective {name} does not read {key}; {readers(key)}")
        elif (problem := options[key].problem(number)) is not None:
            problems.append(f"{key}: {problem}")
    if problems:
        raise ValueError("; ".join(problems))
    checked = {key: option.read(given.get(key, option.default)) for key, option in options.items()}
    if checked.get("length_normalized") and checked["ld_alpha"] != 1:
        raise ValueError(
            "ld_alpha and length_normalized both change what the length of an answer does; set one of them"
        )
    return {"name": name, **checked}


_OF_TRL = {"sigmoid": "dpo", "sigmoid_norm": "dpo_norm", "exo_pair": "exo", "nca_pair": "nca", "sppo_hard": "sppo"}
"""Losses whose names in TRL are no objective's here -> the objective that they are."""


def _row(name: Any) -> ObjectiveRow:
    if isinstance(name, str) and name in OBJECTIVES:
        return OBJECTIVES[name]
    if is_outside(name):
        try:
            return row_of(name)
        except ConfigError as error:
            raise ValueError(str(error).removeprefix("objective.")) from error.__cause__
    theirs = _OF_TRL.get(name) if isinstance(name, str) else None
    near = [theirs] if theirs else difflib.get_close_matches(str(name), OBJECTIVES, n=1)
    hint = f"; did you mean {near[0]}{', which TRL calls so' if theirs else ''}?" if near else ""
    raise ValueError(f"name: {name!r} is not an objective; allowed: {', '.join(sorted(OBJECTIVES))}, {FORM}{hint}")


def _check_added(term: Any, first: ObjectiveRow) -> dict[str, Any]:
    if isinstance(term, str):
        term = {"name": term}
    if not isinstance(term, Mapping) or "name" not in term:
        raise ValueError(f"{term!r} names no objective; allowed: {{name: ..., weight: ...}}")
    checked = _check_term(dict(term))
    row = row_of(checked["name"])
    if row.data != first.data and (first.data, row.data) != ("pairs", "answers"):
        raise ValueError(
            f"{row.name} reads {row.data}, {first.name} reads {first.data}; the terms of a sum read the same"
        )
    return checked
