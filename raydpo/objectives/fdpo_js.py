"""f-DPO with the Jensen-Shannon divergence.

    u = log pi(y_w|x) - log ref(y_w|x)      v = log pi(y_l|x) - log ref(y_l|x)
    loss = -log sigma(beta (g(u) - g(v)))   g(u) = f'(e^u) = log(2 e^u / (1 + e^u)) = log sigma(u) + ln 2

Wang et al. 2023, "Beyond reverse KL", arXiv 2309.16240. The constant ln 2 cancels and is left out. Log-ratios far above 0
saturate: they have no gradient. At u = v the loss is ln 2. Rewards stay beta times the log-ratio.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from raydpo.objectives.seam import Objective, ObjectiveInput, ObjectiveOutput, from_log_ratios


@dataclass(frozen=True)
class FDPOJensenShannon(Objective):
    """beta: > 0, no unit."""

    beta: float = 0.1

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        return from_log_ratios(inputs, self.beta, self.losses)

    def losses(self, u: Tensor, v: Tensor) -> Tensor:
        """Of each pair, from log-ratios in nats: [E]."""
        return -logsigmoid(self.beta * (logsigmoid(u) - logsigmoid(v)))
