"""From the name in `generate.engine` to an engine that has loaded its policy."""

from __future__ import annotations

from raydpo.errors import ConfigError
from raydpo.generate.engine import Engine, EngineSpec


def make_engine(spec: EngineSpec) -> Engine:
    """Load the model into the engine that `spec` names. Raises ConfigError when that is not installed or cannot run it."""
    if spec.engine == "transformers":
        from raydpo.generate.transformers_engine import TransformersEngine

        return TransformersEngine(spec)
    if spec.engine == "vllm":
        from raydpo.generate.vllm_engine import VllmEngine

        return VllmEngine(spec)
    raise ConfigError(
        f"generate.engine: {spec.engine} is not an engine; transformers and vllm are. Nothing was loaded."
    )
