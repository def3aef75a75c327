"""How many weights a training has: of the model, trained ones, and those that an export holds. No torch, no weight is read.

Comes in: shapes of the model's weights, and what `train.lora` asks for. Goes out: counts. Decision: what is adapted follows
from names, as files have them; where a family is called otherwise in memory the count is an estimate, and nothing but the
free disk is held against it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raydpo.models.matrix_kinds import EMBEDDING, HEAD, OTHER_SENSES, ROUTER, kind_of_matrix

_UNADAPTED = (EMBEDDING, HEAD, OTHER_SENSES, ROUTER)
Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class TrainedSize:
    """model: weights of the whole model. trained: those with optimizer state. exported: those in `model/`."""

    model: int
    trained: int
    exported: int


def size_of_full(shapes: Shapes) -> TrainedSize:
    """Of a training of all weights that text reaches."""
    model = sum(map(math.prod, shapes.values()))
    trained = sum(math.prod(shape) for name, shape in shapes.items() if kind_of_matrix(name) != OTHER_SENSES)
    return TrainedSize(model, trained, model)


def size_of_lora(
    shapes: Shapes,
    *,
    rank: int,
    target_modules: str | tuple[str, ...],
    dora: bool = False,
    experts: bool = True,
    modules_to_save: tuple[str, ...] = (),
    **_: object,
) -> TrainedSize:
    """Of a training of an adapter. The settings are those of `raydpo.models.lora.add_lora`; what does not count is ignored."""
    trained = 0
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if modules_to_save and any(part.endswith(modules_to_save) for part in (module, module.rpartition(".")[0])):
            trained += math.prod(shape)
        elif len(shape) in (2, 3) and _is_adapted(name, module, len(shape), target_modules, experts):
            *stack, outputs, inputs = shape
            trained += math.prod(stack) * rank * (inputs + outputs) + (outputs if dora else 0)
    return TrainedSize(sum(map(math.prod, shapes.values())), trained, trained)


def _is_adapted(name: str, module: str, num_axes: int, targets: str | tuple[str, ...], experts: bool) -> bool:
    if targets == "all-linear":
        is_expert = ".experts." in name
        is_linear = (num_axes == 2 and name.endswith(".weight")) or is_expert
        return is_linear and (experts or not is_expert) and kind_of_matrix(name) not in _UNADAPTED
    if num_axes != 2 or not name.endswith(".weight"):
        return False
    return re.fullmatch(targets, module) is not None if isinstance(targets, str) else _is_named(module, targets)


def _is_named(module: str, names: tuple[str, ...]) -> bool:
    """As PEFT finds modules to adapt: the whole name, or its end from a dot on. (Of modules to save, any end will do.)"""
    return any(module == name or module.endswith(f".{name}") for name in names)
