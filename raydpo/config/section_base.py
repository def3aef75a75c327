"""What a section of the configuration tells the checks about itself.

Comes in: what is written under its name. Goes out: its keys, and what is wrong between them.
Decision: here are only the questions, so that what asks them (the tree check, the sentences) knows no section by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from pydantic import BaseModel

from raydpo.config.entry import Entry

Add = Callable[[str, str, str], None]
"""add(key, where, sentence): note a problem of a key of the section; "" stands for the section itself."""

Near = Callable[[str, list[str]], list[str]]
"""near(dotted key, its siblings): known keys that an unknown one may have meant."""

_IS_INSIDE: ContextVar[bool] = ContextVar("_IS_INSIDE", default=False)


@contextmanager
def as_pydantic_says() -> Iterator[None]:
    """Within it sections raise pydantic's ValidationError, which names places, instead of a ConfigError."""
    token = _IS_INSIDE.set(True)
    try:
        yield
    finally:
        _IS_INSIDE.reset(token)


def is_inside() -> bool:
    """Whether an outer section, or a check, words the problems of this one."""
    return _IS_INSIDE.get()


class SectionBase(BaseModel):
    """Base of every section; a section that is no plain list of keys answers some of these itself."""

    @classmethod
    def key_names(cls) -> list[str]:
        """Every key that may stand in the section."""
        return list(cls.model_fields)

    @classmethod
    def shown_names(cls) -> list[str]:
        """Keys to name where the section itself was not written as one."""
        return cls.key_names()

    @classmethod
    def spelled_out(cls, entry: Entry) -> Entry:
        """What is meant, where the section may be written shorter."""
        return entry

    @classmethod
    def examine(cls, children: dict[str, Entry], prefix: str, add: Add, near: Near) -> dict[str, Any] | None:
        """The good values of a section that looks at its keys itself; None: at its fields, one by one."""
        return None

    @classmethod
    def is_spoilt_by(cls, broken: Set[str]) -> bool:
        """Whether nothing is known of the section when these of its keys are broken."""
        return False

    def is_changed(self, key: str) -> bool:
        """Whether `key` has another value than its default."""
        return bool(getattr(self, key) != type(self).model_fields[key].default)

    def clashes(self) -> Iterator[str]:
        """What is wrong between keys that are each good: a sentence with their names, without the section's."""
        yield from ()


def is_known(section: SectionBase, key: str) -> bool:
    """Whether `key` of a section can be read: it was not taken out because its value is not known."""
    return key in section.__dict__


def say_what_is_known(checks: Iterable[Callable[[], Iterable[str]]]) -> list[str]:
    """The problems that each check finds in a section with keys taken out; one that reads such a key finds nothing."""
    found: list[str] = []
    for check in checks:
        try:
            found += list(check())
        except AttributeError as error:
            if not _is_of_a_taken_key(error):
                raise
    return found


def _is_of_a_taken_key(error: AttributeError) -> bool:
    return isinstance(error.obj, SectionBase) and error.name in type(error.obj).model_fields
