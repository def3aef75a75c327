"""What is known of a configuration key in addition to its type and help, declared at the key and nowhere else.

Comes in: `Annotated[type, Key(...)]` on a field of a section. Goes out: the sets that the program asks for, made by walking
the sections. Decision: a key without a `Key` decides the numbers of a run, so a new key that nobody thought about refuses a
resume instead of mixing two runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from raydpo.config.problems import section_of

Run = Literal["training", "rounds"]
"""What can go on: a training in its run directory, or a run of rounds in its own."""


@dataclass(frozen=True)
class ReadWith:
    """The key is read when another key of the same section has a certain value, and does nothing otherwise.

    key, value: the other key, and that value.
    subject: of a sentence on `key`.
    also_outside: something of another package may read it too.
    """

    key: str
    value: str
    subject: str
    also_outside: bool = False


@dataclass(frozen=True)
class Key:
    """Facts of one key; the defaults are those of a key that decides numbers and is always read.

    free: runs that may go on with another value, because it changes no number or only the order of a sum, or because the
        digest of what it leads to is compared instead. On a whole section it holds for all its keys.
    read_with: see `ReadWith`.
    looks_at_eval_prompts: a bound on what an evaluation of rounds measures.
    needed_by, read_by: kinds of judge that must or may have it; neither: every kind. Only in `judge`, as all that
        follow.
    changes_score: whether scores of another run of the judge could differ.
    is_of_pool: holds for a judge with all its members.
    is_of_actors: concerns judge actors, which a function that is handed in does not have.
    """

    free: tuple[Run, ...] = ()
    read_with: ReadWith | None = None
    looks_at_eval_prompts: bool = False
    needed_by: tuple[str, ...] = ()
    read_by: tuple[str, ...] = ()
    changes_score: bool = True
    is_of_pool: bool = False
    is_of_actors: bool = False


FREE = Key(free=("training", "rounds"))
FREE_IN_TRAINING = Key(free=("training",))
FREE_IN_ROUNDS = Key(free=("rounds",))
STOP_RULE = Key(free=("rounds",), looks_at_eval_prompts=True)


def facts(section: type[BaseModel], key: str) -> Key:
    """What is declared at `key`; the defaults where nothing is."""
    return _facts(section.model_fields[key])


def keys_that(section: type[BaseModel]) -> Iterator[tuple[str, Key]]:
    """(key, its facts) for every key of a section, in the order of the section."""
    for name, field in section.model_fields.items():
        yield name, _facts(field)


def free_keys(root: type[BaseModel], run: Run) -> frozenset[str]:
    """Names of whole sections and "section.key" of keys that may be others when `run` goes on."""
    return frozenset(_free(root, run, ""))


def _free(model: type[BaseModel], run: Run, prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        if run in _facts(field).free:
            yield prefix + name
        elif section is not None and not prefix:
            yield from _free(section, run, f"{name}.")


def _facts(field: FieldInfo) -> Key:
    return next((each for each in field.metadata if isinstance(each, Key)), Key())
