"""Pipelines: which stage comes after which. The verbs of the command line and of the Python API."""

from raydpo.pipelines.offline import check, evaluate, precompute, train
from raydpo.pipelines.quickstart import quickstart

__all__ = ["check", "evaluate", "precompute", "quickstart", "train"]
