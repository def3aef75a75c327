"""Objectives: tensors in, loss out; one file each. `OBJECTIVE_CLASSES` implements exactly the names of the config's table.

How to add one: a frozen dataclass of its parameters with `unit` and `__call__(ObjectiveInput) -> ObjectiveOutput` in a
file of its own, a row in `raydpo.config.objectives`, an entry here, golden values in tests/objectives.
"""

from collections.abc import Callable, Mapping

from raydpo.objectives.dpo import DPO
from raydpo.objectives.seam import Objective, ObjectiveInput, ObjectiveOutput
from raydpo.objectives.sft import SFT

OBJECTIVE_CLASSES: dict[str, Callable[..., Objective]] = {"dpo": DPO, "sft": SFT}


def make_objective(name: str, parameters: Mapping[str, float]) -> Objective:
    """The objective `name` with its validated parameters."""
    return OBJECTIVE_CLASSES[name](**parameters)


__all__ = ["OBJECTIVE_CLASSES", "Objective", "ObjectiveInput", "ObjectiveOutput", "make_objective"]
