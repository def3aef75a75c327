"""BCO on pairs: each answer is classified by itself, with no shift.

    u = log pi(y_w|x) - log ref(y_w|x)      v = log pi(y_l|x) - log ref(y_l|x)      d = u - v
    loss = -log sigma(beta u) - log sigma(-beta v)

Jung et al. 2024, "Binary classifier optimization", arXiv 2404.04656. The paper subtracts a reward shift delta (a running
mean of rewards) inside both sigmoids. Here delta = 0, as in TRL's bco_pair: a shift is state that follows the order of
batches, and older TRL and LLaMA-Factory give the same name to the shifted form. At u = v = 0 the loss is 2 ln 2.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from raydpo.objectives.seam import Objective, ObjectiveInput, ObjectiveOutput, from_log_ratios


@dataclass(frozen=True)
class BCOPair(Objective):
    """beta: 1/nats, > 0."""

    beta: float = 0.1

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        return from_log_ratios(inputs, self.beta, self.losses)

    def losses(self, u: Tensor, v: Tensor) -> Tensor:
        """Of each pair, from log-ratios in nats: [E]."""
        return -logsigmoid(self.beta * u) - logsigmoid(-self.beta * v)
