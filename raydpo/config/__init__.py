"""Configuration: pydantic sections, the table of objectives, and the loader (YAML, overrides, provenance).

The table needs nothing but Python; `Config`, which needs pydantic, is looked up when it is first used.
"""

from typing import TYPE_CHECKING, Any

from raydpo.config.objective_door import declares, parameter
from raydpo.config.objective_row import ObjectiveRow
from raydpo.config.objective_table import OBJECTIVES

if TYPE_CHECKING:
    from raydpo.config.sections import Config

__all__ = ["OBJECTIVES", "Config", "ObjectiveRow", "declares", "parameter"]


def __getattr__(name: str) -> Any:
    if name == "Config":
        from raydpo.config.sections import Config

        return Config
    raise AttributeError(f"module 'raydpo.config' has no attribute {name!r}")
