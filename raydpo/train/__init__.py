"""Training and evaluation of one rank: plain functions of (rank, spec), no Ray."""

from raydpo.train.spec import TrainSpec

__all__ = ["TrainSpec"]
