"""Sampling from a policy: engines (transformers, vLLM), and the callable that a generator actor runs."""

from raydpo.generate.engine import Engine, EngineSpec, make_engine
from raydpo.generate.worker import Generator, Loaded

__all__ = ["Engine", "EngineSpec", "Generator", "Loaded", "make_engine"]
