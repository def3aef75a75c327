"""Objectives: tensors in, loss out; one file each. `OBJECTIVE_CLASSES` implements exactly the names of the config's table.

How to add one: a frozen dataclass of its parameters with the base `Objective` in a file of its own, called as in the
config; a row in `raydpo.config.objective_table`; golden values in tests/objectives. A file is found by its name, and a
second class in it by the `name` that it gives itself.
"""

import inspect
from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import cast

from raydpo.objectives.seam import (
    Objective,
    ObjectiveInput,
    ObjectiveOutput,
    from_labels,
    from_log_probs,
    from_log_ratios,
)

_OTHER_FILES = ("seam", "loss", "modifiers")


def _find() -> dict[str, type[Objective]]:
    """Name in the config -> class, over the files of this folder."""
    found: dict[str, type[Objective]] = {}
    for file in iter_modules(__path__):
        if file.name in _OTHER_FILES:
            continue
        module = import_module(f"{__name__}.{file.name}")
        for value in vars(module).values():
            if inspect.isclass(value) and Objective in value.__mro__ and value.__module__ == module.__name__:
                found[vars(value).get("name", file.name)] = cast(type[Objective], value)
    return found


OBJECTIVE_CLASSES: dict[str, type[Objective]] = _find()


def make_objective(name: str, parameters: Mapping[str, float]) -> Objective:
    """The objective `name` with its validated parameters."""
    return OBJECTIVE_CLASSES[name](**parameters)


__all__ = [
    "OBJECTIVE_CLASSES",
    "Objective",
    "ObjectiveInput",
    "ObjectiveOutput",
    "from_labels",
    "from_log_probs",
    "from_log_ratios",
    "make_objective",
]
