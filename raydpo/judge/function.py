"""A judge that is a function of the user's: "package.module:name" -> the function.

Goes out: a callable (prompt, responses) -> scores.
Decision: the module is imported by name on the node that judges, never shipped as bytes; what is not installed there is
an error before the first prompt. `importable` finds modules where Ray has its workers look for them.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from raydpo.errors import ConfigError
from raydpo.judge.verdict import Judge

_FORM = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


@contextmanager
def importable() -> Iterator[None]:
    """Inside, a driver finds what its workers find: they look in the folder where the command runs as well."""
    before = list(sys.path)
    sys.path.append(os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before


def function_judge(name: str) -> Judge:
    """Import the function `name` ("package.module:name").

    Raises ConfigError when the form is another, the module cannot be imported, or it has no such function.
    """
    if not _FORM.fullmatch(name):
        raise ConfigError(
            f"judge.function: {name!r} is not of the form package.module:name, so nothing was imported. "
            "Write the module as in `import package.module`, a colon, and the name of the function."
        )
    where, _, what = name.partition(":")
    try:
        module = import_module(where)
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise ConfigError(
            f"judge.function: {where} could not be imported: {type(error).__name__}: {error}. The module must be installed "
            "on every node that judges, or lie on its PYTHONPATH."
        ) from error
    found: Any = getattr(module, what, None)
    if not callable(found):
        is_there = hasattr(module, what)
        problem = (
            f"{what} in {where} is of type {type(found).__name__}, not a function"
            if is_there
            else f"{where} has no {what}"
        )
        near = difflib.get_close_matches(what, [key for key in dir(module) if callable(getattr(module, key))], n=1)
        hint = f"Did you mean {where}:{near[0]}?" if near else "Name a function (prompt, responses) -> scores."
        raise ConfigError(f"judge.function: {problem}; nothing could have been judged. {hint}")
    judge: Judge = found
    return judge
