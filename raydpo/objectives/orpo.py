"""ORPO: likelihood of the chosen answer plus a log odds ratio. No reference.

    p(y) = log pi(y|x) / |y|      log odds(y) = p(y) - log(1 - e^p(y))
    loss = -p(y_w) - lambda log sigma(log odds(y_w) - log odds(y_l))

Hong et al. 2024, arXiv 2403.07691, equations 6 and 7. The likelihood term is the mean over the answer, by the paper's
definition of log P(y|x); TRL takes it over prompt and answer, and over the tokens of a batch. lambda is `odds_weight`.
Odds are infinite at p = 0: p counts as at most -1e-6 there, and such answers are counted in the metric `clamped`.
At p(y_w) = p(y_l) the loss is lambda ln 2 - p. Rewards are the mean log-prob of a token, in nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from raydpo.objectives.seam import Objective, ObjectiveInput, ObjectiveOutput, from_log_probs


@dataclass(frozen=True)
class ORPO(Objective):
    """odds_weight: the paper's lambda, >= 0."""

    odds_weight: float = 0.1

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        return from_log_probs(inputs, 1.0, self.losses, per_token=True, clamped=lambda p: p > LARGEST_NATS)

    def losses(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Of each pair, from mean log-probs in nats a token: [E]."""
        ratio = _log_odds(chosen) - _log_odds(rejected)
        return -chosen - self.odds_weight * logsigmoid(ratio)


LARGEST_NATS = -1e-6
"""Mean log-probs above it count as this in the odds: in float32 1 - p is 0 not much further up."""


def _log_odds(mean_nats: Tensor) -> Tensor:
    capped = mean_nats.clamp(max=LARGEST_NATS)
    return capped - _log1mexp(capped)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0, exact at both ends. The branch not taken gets a harmless x: its gradient is not nan."""
    near = x > -math.log(2)
    high, low = torch.where(near, x, -1.0), torch.where(near, -1.0, x)
    return torch.where(near, torch.log(-torch.expm1(high)), torch.log1p(-torch.exp(low)))
