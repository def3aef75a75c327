"""DiscoPOP: the log-ratio modulated loss that a language model discovered.

    u = log pi(y_w|x) - log ref(y_w|x)      v = log pi(y_l|x) - log ref(y_l|x)      d = u - v
    m = sigma(beta d / tau)
    loss = (1 - m) (-log sigma(beta d)) + m exp(-beta d)

Lu et al. 2024, arXiv 2406.08414, equation 5. Not convex: at the defaults the loss rises with d from -2.37 to
1.44 nats, so the first steps from the reference lower margins; that is the paper's function, no slip. The product
m exp(-beta d) is computed as exp(log m - beta d), at most 1 for tau <= 1, so nothing has to be clamped. At u = v the
loss is (1 + ln 2) / 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, sigmoid

from raydpo.objectives.seam import Objective, ObjectiveInput, ObjectiveOutput, from_log_ratios


@dataclass(frozen=True)
class DiscoPOP(Objective):
    """beta: 1/nats, > 0. tau: temperature of the modulation, in (0, 1]."""

    beta: float = 0.05
    tau: float = 0.05

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        return from_log_ratios(inputs, self.beta, self.losses)

    def losses(self, u: Tensor, v: Tensor) -> Tensor:
        """Of each pair, from log-ratios in nats: [E]."""
        logits = self.beta * (u - v)
        modulation = logits / self.tau
        return -sigmoid(-modulation) * logsigmoid(logits) + torch.exp(logsigmoid(modulation) - logits)
