"""SimPO: DPO without a reference, on mean log-probs, with a target margin.

    p(y) = log pi(y|x) / |y|
    loss = -log sigma(beta (p(y_w) - p(y_l)) - gamma)      gamma = beta gamma_beta_ratio

Meng et al. 2024, arXiv 2405.14734. The margin is given as gamma / beta, as the paper tunes it: a fixed gamma means
another margin for every beta (TRL's gamma 0.5 with beta 0.1 is a ratio of 5). At p(y_w) = p(y_l) the loss is
log(1 + e^gamma). Rewards are beta times the mean log-prob of a token.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from raydpo.objectives.seam import Objective, ObjectiveInput, ObjectiveOutput, from_log_probs


@dataclass(frozen=True)
class SimPO(Objective):
    """beta: tokens/nats, > 0. gamma_beta_ratio: the margin in nats a token, >= 0."""

    beta: float = 2.0
    gamma_beta_ratio: float = 0.5

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        return from_log_probs(inputs, self.beta, self.losses, per_token=True)

    def losses(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Of each pair, from mean log-probs in nats a token: [E]."""
        return -logsigmoid(self.beta * (chosen - rejected - self.gamma_beta_ratio))
