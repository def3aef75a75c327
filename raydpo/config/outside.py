"""The resolver of doors (open registries): from a name in the config to its object, ours or "package.module:name" of others.

Comes in: a `Door`, which says what may stand at a key, and a name. Goes out: the object, or sentences on what is wrong.
Decision: ours are entered by the same kind of name as everybody else's, so there is one way in; a door knows its names
without importing what they stand for. Price: a name of ours that leads nowhere is found by a test, not by an import.
Torch-free and ray-free; importing an outside module runs whatever that module runs.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from raydpo.errors import ConfigError, RaydpoError

PATTERN = r"^[\w.]+:\w+$"
"""What an outside name looks like, for the JSON schema."""
FORM = "package.module:name"

_FORM = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_outside(name: Any) -> bool:
    """Whether `name` means something of another package."""
    return isinstance(name, str) and ":" in name


@contextmanager
def importable() -> Iterator[None]:
    """Inside, a driver finds what its workers find: they look in the folder where the command runs as well."""
    before = list(sys.path)
    sys.path.append(os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before


@dataclass(frozen=True, eq=False)
class Door:
    """What may stand at `key`: the registry of one key, open to `package.module:name`.

    key: as in the config.
    ours: name -> "module:attribute", or "" for a name that the code around it knows by itself.
    is_kind: what the object must be, "a function" or "a class".
    say: what to name, for an error.
    lost: what could not have been done, for an error.
    reader: who imports it, for an error.
    has: attributes that it must have.
    takes: how many positional arguments it must take, None for any.
    trial: what else is wrong with it, found by a harmless call; None for no trial.
    is_list: the key holds several names.
    found: objects that were imported before, by name.
    """

    key: str
    ours: Mapping[str, str]
    is_kind: str
    say: str
    lost: str
    reader: str
    has: tuple[str, ...] = ()
    takes: int | None = None
    trial: Callable[[Any], str | None] | None = None
    is_list: bool = False
    found: dict[str, Any] = field(default_factory=dict, repr=False)

    def allowed(self) -> list[str]:
        """What the key allows, in words."""
        return [*self.ours, FORM]

    def unknown(self, value: Any) -> str | None:
        """The first name in the value of the key that is neither ours nor of the form of an outside one."""
        names = value if self.is_list else (value,)
        return next((name for name in names if name not in self.ours and not _FORM.fullmatch(name)), None)

    def resolve(self, name: str) -> Any:
        """What `name` stands for. Raises ConfigError naming the key."""
        if name not in self.found and self.ours.get(name):
            self.found[name] = imported(self.ours[name])
        elif name not in self.found:
            try:
                self.found[name] = self.find(name)
            except ValueError as error:
                raise ConfigError(f"{self.key}: {error}") from error.__cause__
        return self.found[name]

    def problems(self, name: str) -> list[str]:
        """Why `name` cannot be had, if it is an outside one. Ours are not imported for it."""
        if not is_outside(name):
            return []
        try:
            self.resolve(name)
        except ConfigError as error:
            return list(error.problems)
        return []

    def find(self, name: str) -> Any:
        """Import what the outside `name` stands for. ValueError with a sentence without the key."""
        if not _FORM.fullmatch(name):
            raise ValueError(
                f"{name!r} is not of the form {FORM}, so nothing was imported. "
                "Write the module as in `import package.module`, a colon, and the name of the function."
                if not self.ours
                else f"{name!r} is not one of {', '.join(self.allowed())}; {self.lost}."
            )
        where, _, what = name.partition(":")
        try:
            with importable():
                module = import_module(where)
        except Exception as error:  # importing runs the user's code, which may raise anything
            raise ValueError(
                f"{where} could not be imported: {type(error).__name__}: {error}. The module must be installed "
                f"on every node that {self.reader}, or lie on its PYTHONPATH; this one is {socket.gethostname()}."
            ) from error
        found = getattr(module, what, None)
        problem = self._problem(found, f"{what} in {where}") if hasattr(module, what) else f"{where} has no {what}"
        if problem is None and self.trial is not None and (wrong := self.trial(found)) is not None:
            problem = f"{what} in {where} {wrong}"
        if problem is None:
            return found
        fitting = [key for key, value in vars(module).items() if self._problem(value, key) is None and key[:1] != "_"]
        near = difflib.get_close_matches(what, [key for key in fitting if key != what], n=1)
        raise ValueError(f"{problem}; {self.lost}. {f'Did you mean {where}:{near[0]}?' if near else self.say}")

    def _problem(self, found: Any, who: str) -> str | None:
        if (self.is_kind == "a class" and not inspect.isclass(found)) or (
            self.is_kind == "a function" and not callable(found)
        ):
            return f"{who} is of type {type(found).__name__}, not {self.is_kind}"
        if missing := [name for name in self.has if not _has(found, name)]:
            return f"{who} has no {', '.join(missing)}"
        return None if self.takes is None else _refused(found, self.takes, who)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import PydanticCustomError, core_schema

        def check(value: Any) -> Any:
            if self.unknown(value) is not None:
                ours = ", ".join(f"'{name}'" for name in self.ours)
                raise PydanticCustomError("literal_error", f"Input should be {ours} or {FORM}")
            return value

        return core_schema.no_info_after_validator_function(check, handler(source))

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        one = [{"enum": list(self.ours)}, {"type": "string", "pattern": PATTERN}]
        return {"anyOf": [{"type": "array", "items": {"anyOf": one}}, *one]} if self.is_list else {"anyOf": one}


def _has(found: Any, name: str) -> bool:
    """Whether an object, or what a class makes, has an attribute. (Every class can be called, its objects need not.)"""
    return any(name in vars(base) for base in found.__mro__) if inspect.isclass(found) else hasattr(found, name)


def _refused(found: Any, number: int, who: str) -> str | None:
    """Whether `found` cannot be called with so many arguments by position."""
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # of a built-in that tells nothing
        return None
    try:
        signature.bind(*[None] * number)
    except TypeError as error:
        return f"{who} takes {signature}, and would be called with {number} arguments by position ({error})"
    return None


def imported(home: str) -> Any:
    """What "module:attribute" of ours stands for."""
    where, _, what = home.partition(":")
    return getattr(import_module(where), what)


@contextmanager
def calling(key: str, name: str) -> Iterator[None]:
    """Around a call of what an outside `name` stands for: whatever it raises becomes a ConfigError that names the key."""
    try:
        yield
    except RaydpoError:
        raise
    except Exception as error:
        if not is_outside(name):
            raise
        raise ConfigError(
            f"{key}: {name} raised {type(error).__name__}: {error}. Fix it and run the same command: what was committed is "
            "kept."
        ) from error


def source_sha256(name: str) -> str:
    """Of the file of the module of an outside `name`, which must be importable; of its name where it has no file."""
    where = name.partition(":")[0]
    with importable():
        path = getattr(import_module(where), "__file__", None)
    content = Path(path).read_bytes() if path and Path(path).is_file() else where.encode()
    return hashlib.sha256(content).hexdigest()
