"""What the paired objectives must give, worked out by hand: golden values, values at zero, mirrored pairs.

Two pairs of `pairs.GOLDEN`: u = 1, -1; v = -1, 1.5; d = 2, -2.5; mean log-probs -2, -2 and -1.75, -2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp, log, log1p
from typing import Any

import torch

from raydpo.config import OBJECTIVES
from raydpo.objectives import Objective, ObjectiveInput, ObjectiveOutput, make_objective


def objective(name: str, **parameters: float) -> Objective:
    """`name` with its documented defaults and `parameters` over them."""
    return make_objective(name, {k: p.default for k, p in OBJECTIVES[name].parameters.items()} | parameters)


def whole(one: Objective, given: ObjectiveInput) -> ObjectiveOutput:
    """An objective on a global batch that is one micro-batch: observed first, if it wants to."""
    if hasattr(one, "observe"):
        places = torch.arange(len(given.answers))
        given = replace(given, batch=one.observe(given).detach().double(), positions=places)
    return one(given)


PAIRED = [name for name, row in OBJECTIVES.items() if row.data == "pairs" and row.batch == "none"]
LABELLED = [name for name, row in OBJECTIVES.items() if row.data == "labels"]
WITH_REFERENCE = [name for name in PAIRED if OBJECTIVES[name].needs_reference]
REFERENCE_FREE = [name for name in PAIRED if not OBJECTIVES[name].needs_reference]
CLAMPED = ["fdpo_forward_kl", "fdpo_alpha", "orpo", "alphapo"]


def softplus(x: float) -> float:
    return log1p(exp(x))


def alpha_reward(alpha: float, x: float) -> float:
    return (1 - exp(-alpha * x)) / alpha


@dataclass(frozen=True)
class Golden:
    name: str
    parameters: dict[str, float]
    values: tuple[float, float]


GOLDEN_VALUES = [
    Golden("dpo", {}, (0.598139, 0.825939)),
    Golden("cdpo", {}, (0.618139, 0.800939)),
    Golden("robust", {}, (0.573139, 0.857189)),
    Golden("hinge", {}, (0.8, 1.25)),
    Golden("ipo", {}, (9.0, 56.25)),
    Golden("ipo_mean", {}, (23.200278, 26.522500)),
    Golden("exo", {}, (2.422015, 3.198420)),
    Golden("nca", {"beta": 0.1}, (1.338793, 1.452074)),
    Golden("bco_pair", {}, (1.288793, 1.515354)),
    Golden("sppo", {"beta": 0.1}, (32.0, 78.25)),
    Golden("apo_zero", {}, (0.950042, 1.062409)),
    Golden("apo_down", {}, (0.975145, 1.037197)),
    Golden("discopop", {"beta": 0.1}, (0.814763, 0.829005)),
    Golden("dpo_norm", {}, (0.336365, 1.136871)),
    Golden("dpop", {"beta": 0.1, "penalty": 5.0}, (0.598139, 1.136871)),
    Golden("fdpo_forward_kl", {}, (0.582517, 0.825667)),
    Golden("fdpo_js", {}, (0.644397, 0.750284)),
    Golden(
        "fdpo_alpha",
        {"alpha": 0.3},
        tuple(softplus(-0.1 * (alpha_reward(0.3, u) - alpha_reward(0.3, v))) for u, v in ((1, -1), (-1, 1.5))),
    ),
    Golden("simpo", {}, (1.313262, 0.974077)),
    Golden("cpo", {"nll_weight": 0.0}, (0.513015, 0.974077)),
    Golden("cpo", {}, (0.513015 + 20, 0.974077 + 35)),
    Golden("orpo", {}, (0.0693147 + 2, 0.0556284 + 1.75)),
    Golden("slic", {}, (0.1 * 20, 6 + 0.1 * 35)),
    Golden("alphapo", {}, (1.313262, softplus(1 - 2 * (alpha_reward(0.25, -1.75) - alpha_reward(0.25, -2.0))))),
]

LN2 = log(2)
# At u = v = 0, or two answers of 4 tokens with log-prob -8, with the documented defaults.
AT_ZERO: dict[str, float] = {
    "dpo": LN2,
    "cdpo": LN2,
    "robust": LN2,
    "hinge": 1.0,
    "ipo": 25.0,
    "ipo_mean": 25.0,
    "exo": -LN2 - log(0.001 * 0.999) / 2,
    "nca": 2 * LN2,
    "bco_pair": 2 * LN2,
    "sppo": 5e5,
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "discopop": (1 + LN2) / 2,
    "dpo_norm": LN2,
    "dpop": LN2,
    "fdpo_forward_kl": LN2,
    "fdpo_js": LN2,
    "fdpo_alpha": LN2,
    "simpo": softplus(1.0),
    "orpo": 0.1 * LN2 + 2,
    "cpo": LN2 + 8,
    "slic": 1 + 0.8,
    "alphapo": softplus(1.0),
}

# loss(pair) - loss(pair with its sides swapped) for u, v of log-ratios (or log-probs without a reference), where it is
# a closed form: log sigma(x) - log sigma(-x) = x. Means per token are what the objective is given when it reads lengths.
MIRRORED: dict[str, tuple[dict[str, float], Any]] = {
    "dpo": ({}, lambda u, v: -0.1 * (u - v)),
    "cdpo": ({}, lambda u, v: -0.1 * (u - v) * (1 - 2 * 0.1)),
    "robust": ({}, lambda u, v: -0.1 * (u - v) / (1 - 2 * 0.1)),
    "hinge": ({}, lambda u, v: -2 * 0.1 * (u - v)),  # inside the margin
    "ipo": ({}, lambda u, v: -2 / 0.1 * (u - v)),
    "ipo_mean": ({}, lambda u, v: -2 / 0.1 * (u - v)),
    "bco_pair": ({}, lambda u, v: -0.1 * (u - v)),
    "sppo": ({}, lambda u, v: -2 / 0.001 * (u - v)),
    "dpo_norm": ({}, lambda u, v: -5.0 * (u - v)),
    "dpop": ({"penalty": 0.0}, lambda u, v: -0.3 * (u - v)),
    "fdpo_forward_kl": ({}, lambda u, v: 0.1 * (exp(-u) - exp(-v))),
    "fdpo_js": ({}, lambda u, v: 0.1 * (softplus(-u) - softplus(-v))),
    "fdpo_alpha": ({}, lambda u, v: -0.1 * (alpha_reward(0.5, u) - alpha_reward(0.5, v))),
    "simpo": ({"gamma_beta_ratio": 0.0}, lambda w, r: -2.0 * (w - r)),
    "orpo": ({}, lambda w, r: -(w - r) - 0.1 * (w - r - log(1 - exp(w)) + log(1 - exp(r)))),
    "cpo": ({"nll_weight": 0.0}, lambda w, r: -0.1 * (w - r)),
    "alphapo": ({"gamma_beta_ratio": 0.0}, lambda w, r: -2.0 * (alpha_reward(0.25, w) - alpha_reward(0.25, r))),
}
