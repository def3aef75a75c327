"""raydpo: direct preference optimisation on Ray, with cached references and exact numbers.

    config = raydpo.Config.load("run.yaml", ["train.learning_rate=5e-7"])
    summary = raydpo.train(config)
    run = raydpo.dpo(model, pairs, beta=0.1)  # and raydpo.kto, raydpo.simpo, ...: a function for each objective

Names here are looked up when they are first used, so that `import raydpo` costs nothing.
Decision: `raydpo.train` is both the stage's package and the verb, and so is `raydpo.quickstart`. The packages are
therefore callable; the price is the module class below.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raydpo import errors as errors
    from raydpo.artifacts.reference_cache import open_reference as open_reference
    from raydpo.config.load import load as load
    from raydpo.config.sections import Config as Config
    from raydpo.front.align import align as align
    from raydpo.front.align import dpo as dpo
    from raydpo.front.alignment_run import AlignmentRun as AlignmentRun
    from raydpo.front.callbacks import StopRun as StopRun
    from raydpo.pipelines import Round as Round
    from raydpo.pipelines import check as check
    from raydpo.pipelines import evaluate as evaluate
    from raydpo.pipelines import iterate as iterate
    from raydpo.pipelines import precompute as precompute

__version__ = "0.1.0"

_HOMES = {
    "AlignmentRun": "raydpo.front.alignment_run",
    "Config": "raydpo.config.sections",
    "Round": "raydpo.pipelines",
    "StopRun": "raydpo.front.callbacks",
    "align": "raydpo.front.align",
    "check": "raydpo.pipelines",
    "dpo": "raydpo.front.align",
    "evaluate": "raydpo.pipelines",
    "iterate": "raydpo.pipelines",
    "load": "raydpo.config.load",
    "open_reference": "raydpo.artifacts.reference_cache",
    "precompute": "raydpo.pipelines",
}

_VERBS = {
    "raydpo.quickstart": ("raydpo.quickstart.offline_dpo", "quickstart"),
    "raydpo.train": ("raydpo.pipelines", "train"),
}

__all__ = [
    "AlignmentRun",
    "Config",
    "Round",
    "StopRun",
    "__version__",
    "align",
    "check",
    "dpo",
    "errors",
    "evaluate",
    "iterate",
    "load",
    "open_reference",
    "precompute",
    "quickstart",
    "train",
]


class _Verb(ModuleType):
    """A package that can also be called: train(config, observer=ignore), quickstart(run_dir, seed=0) -> summary."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """train: precompute what is missing, train and evaluate. quickstart: a whole small run. Returns the summary that
        `summary.json` holds."""
        home, name = _VERBS[self.__name__]
        summary: dict[str, Any] = getattr(importlib.import_module(home), name)(*args, **kwargs)
        return summary


class _Package(ModuleType):
    """This package: makes a verb's package callable at the moment the import system puts it here."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and value.__name__ in _VERBS:
            value.__class__ = _Verb
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in ("errors", "quickstart", "train"):
        return importlib.import_module(f"raydpo.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    from raydpo.config.objective_table import OBJECTIVES

    if name in OBJECTIVES:
        return importlib.import_module("raydpo.front.by_objective").objective_function(name)
    raise AttributeError(f"module 'raydpo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
