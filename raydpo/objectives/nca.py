"""NCA for pairs: noise contrastive alignment.

    u = log pi(y_w|x) - log ref(y_w|x)      v = log pi(y_l|x) - log ref(y_l|x)      d = u - v
    loss = -log sigma(beta u) - 1/2 log sigma(-beta u) - 1/2 log sigma(-beta v)

Chen et al. 2024, arXiv 2402.05369, its loss for two answers with rewards 1 and 0. The log-ratio of the chosen answer is
drawn to an absolute level (beta u = ln 2) instead of only above the rejected one. At u = v = 0 the loss is 2 ln 2.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from raydpo.objectives.seam import Objective, ObjectiveInput, ObjectiveOutput, from_log_ratios


@dataclass(frozen=True)
class NCA(Objective):
    """beta: 1/nats, > 0."""

    beta: float = 0.01

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        return from_log_ratios(inputs, self.beta, self.losses)

    def losses(self, u: Tensor, v: Tensor) -> Tensor:
        """Of each pair, from log-ratios in nats: [E]."""
        chosen, rejected = self.beta * u, self.beta * v
        return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)
