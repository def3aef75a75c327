"""A function for each objective of the table: `raydpo.kto(model, data, ...)`, with its own options as arguments.

Comes in: a name of the table. Goes out: `align` for that objective, with a signature and a docstring that say its options.
Decision: made from the table, so that a new row is a new function and no option is written twice. The price: a type checker
sees a callable, and an editor the signature.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

from raydpo.config.objective_check import readable
from raydpo.config.objective_table import OBJECTIVES


@cache
def objective_function(name: str) -> Any:
    """The function of the objective `name`. KeyError: not in the table."""
    row = OBJECTIVES[name]
    options = readable(row)

    def function(model: Any, data: Any, **given: Any) -> Any:
        from raydpo.front.align import align

        objective = {"name": name, **{key: given.pop(key) for key in list(given) if key in options}}
        return align(model, data, objective=objective, **given)

    function.__name__ = function.__qualname__ = name
    function.__module__ = "raydpo"
    function.__doc__ = _docstring(name, options)
    function.__signature__ = _signature(options)  # type: ignore[attr-defined]
    return function


def _signature(options: Any) -> inspect.Signature:
    from raydpo.front.align import align

    shared = inspect.signature(align).parameters
    own = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=option.default)
        for key, option in options.items()
    ]
    named = [one for key, one in shared.items() if key not in ("objective", "sections")]
    positional = [one for one in named if one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    keywords = [one for one in named if one.kind is inspect.Parameter.KEYWORD_ONLY]
    return inspect.Signature([*positional, *own, *keywords, shared["sections"]], return_annotation="AlignmentRun")


def _docstring(name: str, options: Any) -> str:
    row = OBJECTIVES[name]
    data = {"pairs": "pairs", "labels": "labelled answers", "answers": "prompts with one answer"}[row.data]
    lines = [
        f"Train `model` on {data} with {row.title}: see `raydpo.dpo` for the arguments that all objectives have.",
        "",
    ]
    lines += [f"{key}: {option.help}; {option.bounds()}, default {option.shown()}." for key, option in options.items()]
    lines += ["", "Raises ConfigError or DataError with all problems at once, before anything is started."]
    return "\n".join(lines)
