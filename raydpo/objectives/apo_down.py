"""APO-down: both answers down, the rejected one further.

    u = log pi(y_w|x) - log ref(y_w|x)      v = log pi(y_l|x) - log ref(y_l|x)      d = u - v
    loss = sigma(beta u) + 1 - sigma(beta d)

D'Oosterlinck et al. 2024, arXiv 2408.06266, equation 8; for chosen answers worse than what the model writes. The 1 is
added here as in TRL; gradients are the paper's. At u = v = 0 the loss is 1 and the chosen answer has no gradient: the two
terms cancel. No unit.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import sigmoid

from raydpo.objectives.seam import Objective, ObjectiveInput, ObjectiveOutput, from_log_ratios


@dataclass(frozen=True)
class APODown(Objective):
    """beta: 1/nats, > 0."""

    beta: float = 0.1

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        return from_log_ratios(inputs, self.beta, self.losses)

    def losses(self, u: Tensor, v: Tensor) -> Tensor:
        """Of each pair, from log-ratios in nats: [E]."""
        return sigmoid(self.beta * u) + sigmoid(-self.beta * (u - v))
