"""Read a run's YAML file and the overrides of the command line into a `Config` that knows where each value is from.

In: a path, words `section.key=value`, and the verb that will run it, where that is known. Out: `Loaded`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from raydpo.config.load_as import Loaded, load_as
from raydpo.config.sections import Config
from raydpo.config.verb_checks import verb_checks

__all__ = ["Loaded", "load"]


def load(
    path: str | Path,
    overrides: Sequence[str] = (),
    verb: str | None = None,
    beyond: Callable[[Config], Iterable[str]] | None = None,
) -> Loaded[Config]:
    """Read `path` (YAML), apply `overrides` ("section.key=value") and validate.

    verb: what "train", "iterate", ... need is looked at too. beyond: see `load_as`. Raises ConfigError with every problem:
    file and line or "command line", what was given, what is allowed, what to do.
    """
    return load_as(Config, path, overrides, partial(verb_checks, verb=verb), beyond)
