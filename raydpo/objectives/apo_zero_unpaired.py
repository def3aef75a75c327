"""APO-zero on single answers: desirable answers up, undesirable ones down.

    u = log pi(y|x) - log ref(y|x)
    loss = 1 - sigma(beta u)   for a desirable answer,   sigma(beta u)   for an undesirable one

D'Oosterlinck et al. 2024, arXiv 2408.06266, equation 7 taken answer by answer: KTO whose reference point is 0. At equal
policy and reference the loss is 1/2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import sigmoid

from raydpo.objectives.seam import Objective, ObjectiveInput, ObjectiveOutput, from_labels


@dataclass(frozen=True)
class APOZeroUnpaired(Objective):
    """beta: 1/nats, > 0."""

    beta: float = 0.1

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        return from_labels(inputs, self.beta, self.losses)

    def losses(self, u: Tensor, desirable: Tensor) -> Tensor:
        """Of each example, from log-ratios in nats: [E]."""
        return sigmoid(torch.where(desirable, -self.beta * u, self.beta * u))
