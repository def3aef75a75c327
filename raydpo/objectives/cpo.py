"""CPO: DPO with a uniform reference, which cancels, plus the likelihood of the chosen answer.

    loss = -log sigma(beta (log pi(y_w|x) - log pi(y_l|x))) - alpha log pi(y_w|x)

Xu et al. 2024, arXiv 2401.08417, with alpha = 1. Log-probs are sums over the answer in both terms, as the paper prints
them; TRL's second term is a mean over the tokens of a batch instead, which is about `nll_weight` = 1 / (answer length)
here. alpha is `nll_weight`; without it, the loss at equal log-probs is ln 2. Rewards are beta times the log-prob.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from raydpo.objectives.seam import Objective, ObjectiveInput, ObjectiveOutput, from_log_probs


@dataclass(frozen=True)
class CPO(Objective):
    """beta: 1/nats, > 0. nll_weight: of the likelihood term, >= 0."""

    beta: float = 0.1
    nll_weight: float = 1.0

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        return from_log_probs(inputs, self.beta, self.losses)

    def losses(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Of each pair, from log-probs in nats: [E]."""
        return -logsigmoid(self.beta * (chosen - rejected)) - self.nll_weight * chosen
