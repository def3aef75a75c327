"""What vLLM does not sample at: known without vLLM or torch, so that a check of the config can ask before anything starts.

Comes in: a value of the config. Goes out: nothing, or a ConfigError.
"""

from __future__ import annotations

from raydpo.config.round_sections import GenerateSection
from raydpo.errors import ConfigError

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 2.0
"""Below, vLLM takes the lowest without an error; above, it raises."""


def check_temperature(temperature: float) -> None:
    """Raise ConfigError for a temperature that vLLM does not sample at."""
    if not LOWEST_TEMPERATURE <= temperature <= HIGHEST_TEMPERATURE:
        raise ConfigError(
            f"generate.temperature: {temperature:g} is not one that vLLM samples at; {LOWEST_TEMPERATURE:g} to "
            f"{HIGHEST_TEMPERATURE:g} are. Nothing was sampled. Choose another, or generate.engine: transformers."
        )


def problems(section: GenerateSection) -> list[str]:
    """What vLLM cannot do of a section `generate`, as sentences."""
    found = list(section.vllm.misfits("generate", section.gpus_per_worker))
    try:
        check_temperature(section.temperature)
    except ConfigError as error:
        found += error.problems
    return found
