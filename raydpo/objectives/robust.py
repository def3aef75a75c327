"""Robust DPO (rDPO): an unbiased estimate of the DPO loss when labels are flipped with probability eps.

    u = log pi(y_w|x) - log ref(y_w|x)      v = log pi(y_l|x) - log ref(y_l|x)      d = u - v
    loss = [-(1 - eps) log sigma(beta d) + eps log sigma(-beta d)] / (1 - 2 eps)

Chowdhury et al. 2024, arXiv 2403.00409. It equals DPO in expectation over flips, so it can be negative and falls without
bound as d grows; without the factor 1 / (1 - 2 eps) it would be on another scale. At u = v the loss is ln 2.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from raydpo.objectives.seam import Objective, ObjectiveInput, ObjectiveOutput, from_log_ratios


@dataclass(frozen=True)
class Robust(Objective):
    """beta: 1/nats, > 0. label_smoothing: eps in (0, 0.5), the flip rate."""

    beta: float = 0.1
    label_smoothing: float = 0.1

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        return from_log_ratios(inputs, self.beta, self.losses)

    def losses(self, u: Tensor, v: Tensor) -> Tensor:
        """Of each pair, from log-ratios in nats: [E]."""
        logits, eps = self.beta * (u - v), self.label_smoothing
        return (-(1 - eps) * logsigmoid(logits) + eps * logsigmoid(-logits)) / (1 - 2 * eps)
