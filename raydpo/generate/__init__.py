"""Sampling from a policy: engines (transformers, vLLM), and the callable that a generator actor runs."""

from raydpo.generate.engine import Engine, EngineSpec, make_engine
from raydpo.generate.worker import Generator, Health, Loaded

__all__ = ["Engine", "EngineSpec", "Generator", "Health", "Loaded", "make_engine"]
