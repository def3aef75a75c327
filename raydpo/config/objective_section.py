"""The section `objective`: a name and what the table lists for it.

Comes in: a name, or a mapping with one. Goes out: a frozen section with all options filled in, and what follows from them.
Decision: the keys of the section are those of the table's row, so pydantic's own fields are not used for them.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from pydantic import ConfigDict, model_validator

from raydpo.config.entry import Entry
from raydpo.config.objective_check import check_objective, make_term, readable
from raydpo.config.objective_door import row_of
from raydpo.config.objective_row import ObjectiveRow, Term
from raydpo.config.objective_table import OBJECTIVES
from raydpo.config.outside import is_outside
from raydpo.config.section import Worded
from raydpo.config.section_base import Add, Near

_WRITE = ". Write one of the allowed names."


class ObjectiveSection(Worded):
    """`name` plus exactly the options that the table in `raydpo.config.objective_table` lists for it (or that an outside
    objective, package.module:name, declares: docs/extend.md), and `plus`: further terms of the loss, each with its own name,
    weight and options."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = "dpo"

    @model_validator(mode="before")
    @classmethod
    def _from_table(cls, value: Any) -> Any:
        return check_objective(value)

    @classmethod
    def key_names(cls) -> list[str]:
        return ["name", *dict.fromkeys(key for row in OBJECTIVES.values() for key in readable(row)), "plus"]

    @classmethod
    def shown_names(cls) -> list[str]:
        return ["name", "beta", "..."]

    @classmethod
    def spelled_out(cls, entry: Entry) -> Entry:
        """`objective: dpo` is short for `objective: {name: dpo}`."""
        return Entry({"name": entry}, entry.where) if isinstance(entry.value, str) else entry

    @classmethod
    def examine(cls, children: dict[str, Entry], prefix: str, add: Add, near: Near) -> dict[str, Any] | None:
        """Ask the table about the name, then about each parameter alone, so that each has its own line."""
        name = children["name"].plain() if "name" in children else "dpo"
        if (problem := _refusal({"name": name})) is not None:
            add("name", children["name"].where, f"{prefix}{problem}{'' if is_outside(name) else _WRITE}")
            return {}
        options = readable(row_of(name))
        good: dict[str, Any] = {"name": name}
        for key, entry in children.items():
            problem = _refusal({"name": name, key: entry.plain()}) if key != "name" else None
            if problem is None:
                good[key] = entry.plain()
            elif key == "plus":
                add(key, entry.where, f"{prefix}{problem}. Correct the terms, or leave plus out.")
            elif key in options:
                default = options[key].shown()
                add(key, entry.where, f"{prefix}{problem}. Correct it, or leave it out for the default, {default}.")
            else:
                meant = [other for other in near(prefix + key, list(options)) if other != prefix + key]
                hint = f" Did you mean {meant[0]}?" if meant else ""
                names = ", ".join(["name", *options, "plus"])
                add(key, entry.where, f"{prefix}{problem}.{hint} Allowed for {name}: {names}. Rename or remove it.")
        return good

    @classmethod
    def is_spoilt_by(cls, broken: Set[str]) -> bool:
        return bool(broken & {"name", "plus"})

    @property
    def terms(self) -> tuple[Term, ...]:
        """The terms of the loss, the one that is named first."""
        values = dict(self.__pydantic_extra__ or {})
        return tuple(make_term(term) for term in ({"name": self.name, **values}, *values["plus"]))

    @property
    def row(self) -> ObjectiveRow:
        """The row of the table, or what an outside objective declares: what data there is and what rewards are."""
        return row_of(self.name)

    @property
    def parameters(self) -> dict[str, float]:
        """Every parameter of the objective, defaults filled in."""
        return dict(self.terms[0].parameters)

    @property
    def needs_reference(self) -> bool:
        """Whether any term does."""
        return any(term.row.needs_reference for term in self.terms)

    @property
    def batch_kinds(self) -> tuple[str, ...]:
        """What passes without gradient over the global batch look at: "answers", "mismatched", both or nothing."""
        return tuple(dict.fromkeys(term.row.batch for term in self.terms if term.row.batch != "none"))

    @property
    def num_rows(self) -> int:
        """Rows (a prompt with an answer) of one example in the token shards: its answers, then the mismatched one."""
        return self.row.num_answers + ("mismatched" in self.batch_kinds)


def _refusal(objective: dict[str, Any]) -> str | None:
    try:
        check_objective(objective)
    except ValueError as error:
        return str(error)
    return None
