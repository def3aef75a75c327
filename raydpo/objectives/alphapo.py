"""AlphaPO: SimPO with a bent reward.

    p(y) = log pi(y|x) / |y|      r(y) = (1 - e^(-alpha p(y))) / alpha      (alpha = 0: r = p, SimPO)
    loss = -log sigma(beta (r(y_w) - r(y_l)) - gamma)      gamma = beta gamma_beta_ratio

Gupta et al. 2025, arXiv 2501.03884. An exponent above 30 goes on as a straight line; such answers are counted in the
metric `clamped`. At p(y_w) = p(y_l) the loss is log(1 + e^gamma). Rewards are beta times the mean log-prob of a token,
SimPO's, so that the two can be compared; r grows with p, so accuracies are the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from raydpo.objectives.seam import (
    EXPONENT_MAX,
    Objective,
    ObjectiveInput,
    ObjectiveOutput,
    expm1_or_line,
    from_log_probs,
)


@dataclass(frozen=True)
class AlphaPO(Objective):
    """The parameters of AlphaPO.

    beta: tokens/nats, > 0.
    gamma_beta_ratio: the margin in units of r, >= 0.
    alpha: any sign.
    """

    beta: float = 2.0
    gamma_beta_ratio: float = 0.5
    alpha: float = 0.25

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        return from_log_probs(
            inputs, self.beta, self.losses, per_token=True, clamped=lambda p: -self.alpha * p > EXPONENT_MAX
        )

    def losses(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Of each pair, from mean log-probs in nats a token: [E]."""
        margin = self._reward(chosen) - self._reward(rejected)
        return -logsigmoid(self.beta * (margin - self.gamma_beta_ratio))

    def _reward(self, nats: Tensor) -> Tensor:
        return -expm1_or_line(-self.alpha * nats) / self.alpha if self.alpha else nats
