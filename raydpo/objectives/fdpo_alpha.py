"""f-DPO with the alpha divergence.

    u = log pi(y_w|x) - log ref(y_w|x)      v = log pi(y_l|x) - log ref(y_l|x)
    loss = -log sigma(beta (g(u) - g(v)))   g(u) = f'(e^u) = (1 - e^(-alpha u)) / alpha

Wang et al. 2023, "Beyond reverse KL", arXiv 2309.16240. alpha is the paper's, in (0, 1): to 0 it becomes reverse KL
(`dpo`), to 1 forward KL (`fdpo_forward_kl`). TRL's coefficient is 1 - alpha; they agree at the default only. An exponent
above 30 goes on as a straight line; such answers are counted in the metric `clamped`. At u = v the loss is ln 2.
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
class FDPOAlpha(Objective):
    """beta: > 0, no unit. alpha: the paper's, in (0, 1)."""

    beta: float = 0.1
    alpha: float = 0.5

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        return from_log_ratios(inputs, self.beta, self.losses, clamped=lambda r: -self.alpha * r > EXPONENT_MAX)

    def losses(self, u: Tensor, v: Tensor) -> Tensor:
        """Of each pair, from log-ratios in nats: [E]."""
        difference = expm1_or_line(-self.alpha * v) - expm1_or_line(-self.alpha * u)
        return -logsigmoid(self.beta * difference / self.alpha)
