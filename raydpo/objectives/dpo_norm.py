"""Length-normalised DPO.

    u = log pi(y_w|x) - log ref(y_w|x)      v = log pi(y_l|x) - log ref(y_l|x)      d = u - v
    loss = -log sigma(beta (u / |y_w| - v / |y_l|))

Lambert et al. 2024, "Tulu 3", arXiv 2411.15124; |y| counts answer tokens. beta is on another scale than DPO's: 5 here is
about 0.1 there with answers of 50 tokens. At u = v = 0 the loss is ln 2. Rewards are beta times the mean log-ratio of
a token.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from raydpo.objectives.seam import Objective, ObjectiveInput, ObjectiveOutput, from_log_ratios


@dataclass(frozen=True)
class DPONorm(Objective):
    """beta: tokens/nats, > 0."""

    beta: float = 5.0

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        return from_log_ratios(inputs, self.beta, self.losses, per_token=True)

    def losses(self, u: Tensor, v: Tensor) -> Tensor:
        """Of each pair, from mean log-ratios in nats a token: [E]."""
        return -logsigmoid(self.beta * (u - v))
