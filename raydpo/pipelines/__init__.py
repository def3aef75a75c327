"""Pipelines: which stage comes after which. The verbs of the command line and of the Python API."""

from raydpo.pipelines.offline import check, evaluate, precompute, train

__all__ = ["check", "evaluate", "precompute", "train"]
