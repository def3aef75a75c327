"""DPO-Positive: DPO that also punishes a chosen answer which falls below the reference.

    u = log pi(y_w|x) - log ref(y_w|x)      v = log pi(y_l|x) - log ref(y_l|x)      d = u - v
    loss = -log sigma(beta (d - lambda max(0, -u)))

Pal et al. 2024, "Smaug", arXiv 2402.13228. The penalty is inside beta, as in the paper; there are programs with it
outside. lambda is `penalty`. At u = v = 0 the loss is ln 2.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from raydpo.objectives.seam import Objective, ObjectiveInput, ObjectiveOutput, from_log_ratios


@dataclass(frozen=True)
class DPOP(Objective):
    """beta: 1/nats, > 0. penalty: the paper's lambda, >= 0; 0 is DPO."""

    beta: float = 0.3
    penalty: float = 50.0

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        return from_log_ratios(inputs, self.beta, self.losses)

    def losses(self, u: Tensor, v: Tensor) -> Tensor:
        """Of each pair, from log-ratios in nats: [E]."""
        return -logsigmoid(self.beta * (u - v - self.penalty * relu(-u)))
