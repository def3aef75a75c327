"""Pipelines: which stage comes after which. The verbs of the command line and of the Python API."""

from raydpo.pipelines.offline import check, evaluate, precompute, train
from raydpo.pipelines.quickstart import quickstart
from raydpo.pipelines.quickstart_rounds import quickstart_rounds
from raydpo.pipelines.rounds import Round, iterate, run_rounds

__all__ = [
    "Round",
    "check",
    "evaluate",
    "iterate",
    "precompute",
    "quickstart",
    "quickstart_rounds",
    "run_rounds",
    "train",
]
