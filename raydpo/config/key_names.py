"""Which keys of a config have a name, for people who write the name alone.

Comes in: a name such as beta. Goes out: dotted keys. Imported only where something is wrong already.
"""

from __future__ import annotations

from raydpo.config.objective_table import OBJECTIVES
from raydpo.config.problems import section_of
from raydpo.config.sections import Config

_MOST = 3


def keys_named(name: str) -> list[str]:
    """At most three dotted keys whose last part is `name`, those of training first."""
    found = [f"objective.{name}"] if any(name in row.parameters for row in OBJECTIVES.values()) else []
    order = ("train", "data", "model", "run")
    sections = sorted(
        Config.model_fields.items(), key=lambda each: order.index(each[0]) if each[0] in order else len(order)
    )
    for section, field in sections:
        kind = section_of(field.annotation)
        if kind is not None and name in getattr(kind, "model_fields", {}):
            found.append(f"{section}.{name}")
    return found[:_MOST]
