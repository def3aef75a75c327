"""Pipelines: which stage comes after which. The verbs of the command line and of the Python API."""

from raydpo.pipelines.offline import check, evaluate, precompute, train
from raydpo.pipelines.quickstart import quickstart
from raydpo.pipelines.rounds import Round, iterate, run_rounds

__all__ = ["Round", "check", "evaluate", "iterate", "precompute", "quickstart", "run_rounds", "train"]
