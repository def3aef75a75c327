"""EXO for pairs: the reverse KL from the policy's preference to the smoothed label.

    u = log pi(y_w|x) - log ref(y_w|x)      v = log pi(y_l|x) - log ref(y_l|x)      d = u - v
    p = sigma(beta d)
    loss = p [log p - log(1 - eps)] + (1 - p) [log(1 - p) - log eps]

Ji et al. 2024, arXiv 2402.00856, equation 16 with two answers. eps > 0 is needed: a hard label has infinite reverse KL.
At u = v the loss is -ln 2 - ln(eps (1 - eps)) / 2. Minimum, 0, at sigma(beta d) = 1 - eps: the margin is bounded.
The gradient vanishes at both ends: a pair that is far on the wrong side is given up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid, sigmoid

from raydpo.objectives.seam import Objective, ObjectiveInput, ObjectiveOutput, from_log_ratios


@dataclass(frozen=True)
class EXO(Objective):
    """beta: 1/nats, > 0. label_smoothing: eps in (0, 0.5)."""

    beta: float = 0.1
    label_smoothing: float = 0.001

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        return from_log_ratios(inputs, self.beta, self.losses)

    def losses(self, u: Tensor, v: Tensor) -> Tensor:
        """Of each pair, from log-ratios in nats: [E]."""
        logits, eps = self.beta * (u - v), self.label_smoothing
        right = sigmoid(logits) * (logsigmoid(logits) - math.log1p(-eps))
        return right + sigmoid(-logits) * (logsigmoid(-logits) - math.log(eps))
