"""KTO: answers that are desirable or not, each measured against a reference point.

    u = log pi(y|x) - log ref(y|x)
    z = max(0, mean over the global batch of log pi(y'|x) - log ref(y'|x)), y' the answer to another prompt, no gradient
    loss = lambda_D (1 - sigma(beta (u - z)))   for a desirable answer
           lambda_U (1 - sigma(beta (z - u)))   for an undesirable one

Ethayarajh et al. 2024, arXiv 2402.01306, equation 8; z estimates KL(pi || ref). y' is a fixed function of the data
set (raydpo.data.mismatched), so the reference log-probs of (x, y') are cached like any others; z is the mean over all
ranks and micro-batches, and it is clamped after the mean. The mean of the loss is over examples of both labels together. At
equal policy and reference the loss is lambda / 2. lambda_D and lambda_U are `desirable_weight` and `undesirable_weight`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import sigmoid

from raydpo.objectives.seam import BatchObjective, ObjectiveInput, ObjectiveOutput, from_labels


@dataclass(frozen=True)
class KTO(BatchObjective):
    """The parameters of KTO.

    beta: 1/nats, > 0.
    desirable_weight, undesirable_weight: lambda_D and lambda_U, >= 0.
    """

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    num_values = 1

    def observe(self, inputs: ObjectiveInput) -> Tensor:
        """Log-ratio of each mismatched row."""
        return inputs.log_ratios()

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        batch, positions = inputs.observed()
        z = batch[:, 0].mean().clamp(min=0).to(inputs.policy_nats.dtype)
        output = from_labels(inputs, self.beta, lambda u, desirable: self.losses(u, desirable, z), z)
        return ObjectiveOutput(output.loss_sum, {**output.metrics, "kl": (z * len(positions), len(positions))})

    def losses(self, u: Tensor, desirable: Tensor, z: Tensor) -> Tensor:
        """Of each example, from log-ratios and the reference point in nats: [E]."""
        gain = self.beta * (u - z)
        return torch.where(desirable, self.desirable_weight * sigmoid(-gain), self.undesirable_weight * sigmoid(gain))
