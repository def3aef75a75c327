"""Sampling from a policy (rollouts): engines (transformers, vLLM), and the callable that a generator actor runs."""

from raydpo.generate.engine import Engine, EngineSpec
from raydpo.generate.make_engine import make_engine
from raydpo.generate.worker import Generator, Health, PolicyLoaded

__all__ = ["Engine", "EngineSpec", "Generator", "Health", "PolicyLoaded", "make_engine"]
