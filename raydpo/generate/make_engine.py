"""From the name in `generate.engine` to an engine that has loaded its policy, and what it cannot do."""

from __future__ import annotations

from pathlib import Path

from raydpo.config.doors import ENGINE_CHECKS, ENGINES
from raydpo.config.outside import calling, imported, is_outside
from raydpo.config.round_sections import GenerateSection
from raydpo.errors import ConfigError
from raydpo.generate.engine import Engine, EngineSpec
from raydpo.models.adapter_files import is_adapter


def make_engine(spec: EngineSpec) -> Engine:
    """Load the model into the engine that `spec` names. Raises ConfigError when that is not installed or cannot run it."""
    if spec.engine not in ENGINES.ours and not is_outside(spec.engine):
        raise ConfigError(
            f"generate.engine: {spec.engine} is not an engine; {' and '.join(ENGINES.ours)} are. Nothing was loaded."
        )
    if spec.engine == "vllm" and is_adapter(Path(spec.model)):
        raise ConfigError(
            f"generate.engine: vllm, and {spec.model} is an adapter, which vLLM would load without merging it. Nothing was "
            "loaded. Set generate.engine: transformers, or name a full model (a run's model_merged/)."
        )
    make = ENGINES.resolve(spec.engine)
    with calling(ENGINES.key, spec.engine):
        engine: Engine = make(spec)
    return engine


def engine_problems(section: GenerateSection) -> list[str]:
    """What the engine of `section` cannot do of it, as sentences. Loads nothing."""
    name = section.engine
    if problems := ENGINES.problems(name):
        return problems
    if is_outside(name):
        of_its_own = getattr(ENGINES.resolve(name), "problems", None)
        with calling(ENGINES.key, name):
            return list(of_its_own(section)) if of_its_own is not None else []
    return list(imported(ENGINE_CHECKS[name])(section)) if name in ENGINE_CHECKS else []
