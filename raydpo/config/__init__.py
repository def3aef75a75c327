"""Configuration: pydantic sections, the table of objectives, and the loader (YAML, overrides, provenance)."""

from raydpo.config.objective_row import ObjectiveRow
from raydpo.config.objectives import OBJECTIVES
from raydpo.config.sections import Config

__all__ = ["OBJECTIVES", "Config", "ObjectiveRow"]
