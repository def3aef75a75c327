"""IPO on log-ratios of whole answers.

    u = log pi(y_w|x) - log ref(y_w|x)      v = log pi(y_l|x) - log ref(y_l|x)      d = u - v
    loss = (d - 1 / (2 beta))^2

Azar et al. 2023, arXiv 2310.12036, equation 17, whose tau is `beta` here. This is the equation as printed: sums over
the answer, so a good beta depends on answer lengths; `ipo_mean` is the form that TRL calls ipo. Unit: nats^2. At u = v
the loss is 1 / (4 beta^2).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from raydpo.objectives.seam import Objective, ObjectiveInput, ObjectiveOutput, from_log_ratios


@dataclass(frozen=True)
class IPO(Objective):
    """beta: the paper's tau, 1/nats, > 0."""

    beta: float = 0.1

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        return from_log_ratios(inputs, self.beta, self.losses)

    def losses(self, u: Tensor, v: Tensor) -> Tensor:
        """Of each pair, from log-ratios in nats: [E]."""
        return (u - v - 1 / (2 * self.beta)) ** 2
