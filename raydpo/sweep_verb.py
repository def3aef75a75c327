"""`raydpo sweep`: the same run with several values of some keys.

Comes in: the parsers of the command line. Goes out: one more verb. Decision: `--over key=a,b,c` names what is swept and every
other word is an ordinary override, so that a value with a comma stays possible for those; every combination is checked before
the first is trained.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raydpo.errors import ConfigError

_TEXT = "train with every combination of some values, on one reference cache, and compare"
_EXAMPLE = "example: raydpo sweep run.yaml --over objective.beta=0.03,0.1,0.3 --over train.learning_rate=1e-5,5e-5"


def add(verbs: Any, parents: list[argparse.ArgumentParser], act: Callable[[argparse.Namespace], int]) -> None:
    """Add the verb. act: what it does."""
    verb = verbs.add_parser("sweep", parents=parents, help=_TEXT, description=_TEXT, epilog=_EXAMPLE)
    verb.add_argument(
        "--over",
        metavar="KEY=A,B,C",
        action="append",
        required=True,
        type=_over,
        help="a key and its values; may be repeated",
    )
    verb.set_defaults(act=act)


def _over(text: str) -> tuple[str, list[str]]:
    key, mark, values = text.partition("=")
    found = [value.strip() for value in values.split(",")]
    if not mark or "." not in key or not all(found) or len(set(found)) != len(found):
        raise argparse.ArgumentTypeError(f"given {text!r}; allowed: section.key=A,B,C with different values")
    return key, found


def combinations(over: Sequence[tuple[str, Sequence[str]]]) -> list[dict[str, str]]:
    """Every combination of values, in the order in which they were given. Raises ConfigError for a key that stands twice."""
    keys = [key for key, _ in over]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ConfigError(f"--over names {', '.join(twice)} more than once; give all of its values in one.")
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*(found for _, found in over))]


def loaded(
    path: str, overrides: Sequence[str], chosen: Sequence[Mapping[str, str]], load: Callable[..., Any]
) -> list[Any]:
    """The config of each combination, in a directory of its own below `run.dir`. Raises ConfigError with every problem."""
    configs, problems = [], dict[str, None]()
    for values in chosen:
        words = [f"{key}={value}" for key, value in values.items()]
        try:
            folder = Path(load(path, [*overrides, *words]).config.run.dir)
            name = "_".join(f"{key.rpartition('.')[2]}-{value}" for key, value in values.items()).replace("/", "-")
            configs.append(load(path, [*overrides, *words, f"run.dir={folder / name}"], "train").config)
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise ConfigError(list(problems))
    return configs
