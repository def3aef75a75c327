"""BCO: a binary classifier of single answers whose logit is the reward less a shift.

    r = beta (log pi(y|x) - log ref(y|x))
    delta = (mean r of desirable + mean r of undesirable answers) / 2, no gradient
    loss = -log sigma(r - delta)   for a desirable answer,   -log sigma(-(r - delta))   for an undesirable one

Jung et al. 2024, arXiv 2404.04656. Here delta is that of the global batch; programs that keep a running mean get a
steadier delta from a state that has to be saved, and one that lags behind the policy. A label that a batch lacks
leaves the mean of the other; in a batch of one example delta is its own reward, and the loss ln 2 whatever it is. The
paper's delta weighs both labels alike; a mean over all examples (TRL had it) is another number when labels are not
balanced. At equal policy and reference the loss is ln 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from raydpo.objectives.seam import BatchObjective, ObjectiveInput, ObjectiveOutput, from_labels


@dataclass(frozen=True)
class BCO(BatchObjective):
    """beta: 1/nats, > 0."""

    beta: float = 0.1
    num_values = 2

    def observe(self, inputs: ObjectiveInput) -> Tensor:
        """[log-ratio, whether desirable] of each example."""
        ratios = inputs.log_ratios()[:, 0]
        return torch.stack([ratios, inputs.desirable().to(ratios.dtype)], dim=1)

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        batch, positions = inputs.observed()
        middle = _middle(batch[:, 0], batch[:, 1] > 0).to(inputs.policy_nats.dtype)
        output = from_labels(inputs, self.beta, lambda u, desirable: self.losses(u - middle, desirable), middle)
        shift = (self.beta * middle * len(positions), len(positions))
        return ObjectiveOutput(output.loss_sum, {**output.metrics, "rewards/shift": shift})

    def losses(self, shifted: Tensor, desirable: Tensor) -> Tensor:
        """Of each example, from log-ratios less the shift, in nats: [E]."""
        logits = self.beta * shifted
        return -logsigmoid(torch.where(desirable, logits, -logits))


def _middle(ratios: Tensor, desirable: Tensor) -> Tensor:
    means = [ratios[side].mean() for side in (desirable, ~desirable) if bool(side.any())]
    return torch.stack(means).mean()
