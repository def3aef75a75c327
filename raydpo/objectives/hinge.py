"""Hinge loss on log-ratios (the normalised SLiC of the RSO paper).

    u = log pi(y_w|x) - log ref(y_w|x)      v = log pi(y_l|x) - log ref(y_l|x)      d = u - v
    loss = max(0, 1 - beta d)

Liu et al. 2023, "Statistical rejection sampling improves preference optimization", arXiv 2309.06657. The margin is 1 on
beta d, the same as 1 / beta nats on d. At u = v the loss is 1; a pair beyond the margin has no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import relu

from raydpo.objectives.seam import Objective, ObjectiveInput, ObjectiveOutput, from_log_ratios


@dataclass(frozen=True)
class Hinge(Objective):
    """beta: 1/nats, > 0."""

    beta: float = 0.1

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        return from_log_ratios(inputs, self.beta, self.losses)

    def losses(self, u: Tensor, v: Tensor) -> Tensor:
        """Of each pair, from log-ratios in nats: [E]."""
        return relu(1 - self.beta * (u - v))
