"""What an adapter adapts: matrices counted by kind, and one sentence of it.

Comes in: a model with an adapter of PEFT on it. Goes out: counts. Decision: the kind of a matrix follows from its name, since
families share names and no interface; an unknown one is counted as other, and never left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from raydpo.models.matrix_kinds import kind_of_matrix
from raydpo.models.merging import is_copied, plain_name


def adapted(model: Any) -> Mapping[str, int]:
    """Kind -> number of matrices that the adapter on `model` adapts, the most first. A tensor of all experts counts as one."""
    found: Counter[str] = Counter()
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            kind = getattr(module, "parameter_name", "weight")
            found[kind_of_matrix(f"{plain_name(name)}.{kind}")] += 1
    return dict(found.most_common())


def said(model: Any) -> str:
    """One sentence on what the adapter on `model` adapts and trains."""
    counts = ", ".join(f"{number} {kind}" for kind, number in adapted(model).items())
    whole = sorted({plain_name(name) for name, module in model.named_modules() if is_copied(module)})
    copies = f"; trained whole: {', '.join(whole)}" if whole else ""
    trained, every = model.get_nb_trainable_parameters()
    return f"LoRA adapts {counts} matrices{copies}; {trained:,} of {every:,} weights are trained"
