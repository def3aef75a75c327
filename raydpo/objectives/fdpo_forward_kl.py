"""f-DPO with the forward KL.

    u = log pi(y_w|x) - log ref(y_w|x)      v = log pi(y_l|x) - log ref(y_l|x)
    loss = -log sigma(beta (g(u) - g(v)))   g(u) = f'(e^u) = -e^(-u)

Wang et al. 2023, "Beyond reverse KL", arXiv 2309.16240. Reverse KL, g(u) = u, is `dpo`. g is -expm1(-u) here: a
constant cancels. An exponent above 30 goes on as a straight line; such answers are counted in the metric `clamped`.
At u = v the loss is ln 2. Rewards stay beta times the log-ratio, so that runs can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from raydpo.objectives.seam import (
    EXPONENT_MAX,
    Objective,
    ObjectiveInput,
    ObjectiveOutput,
    expm1_or_line,
    from_log_ratios,
)


@dataclass(frozen=True)
class FDPOForwardKL(Objective):
    """beta: > 0, no unit."""

    beta: float = 0.1

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        return from_log_ratios(inputs, self.beta, self.losses, clamped=lambda r: -r > EXPONENT_MAX)

    def losses(self, u: Tensor, v: Tensor) -> Tensor:
        """Of each pair, from log-ratios in nats: [E]."""
        return -logsigmoid(self.beta * (expm1_or_line(-v) - expm1_or_line(-u)))
