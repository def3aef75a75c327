"""SPPO with hard win probabilities.

    u = log pi(y_w|x) - log ref(y_w|x)      v = log pi(y_l|x) - log ref(y_l|x)      d = u - v
    loss = (u - 1 / (2 beta))^2 + (v + 1 / (2 beta))^2

Wu et al. 2024, arXiv 2405.00675, equation 4.7, whose eta is 1 / beta here. The paper regresses to eta (P - 1/2) with P
an estimated win probability; here P is 1 for the chosen and 0 for the rejected answer, as in TRL's sppo_hard. Unit:
nats^2. At u = v = 0 the loss is 1 / (2 beta^2), half a million at the default.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from raydpo.objectives.seam import Objective, ObjectiveInput, ObjectiveOutput, from_log_ratios


@dataclass(frozen=True)
class SPPO(Objective):
    """beta: 1/eta, 1/nats, > 0."""

    beta: float = 0.001

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        return from_log_ratios(inputs, self.beta, self.losses)

    def losses(self, u: Tensor, v: Tensor) -> Tensor:
        """Of each pair, from log-ratios in nats: [E]."""
        target = 1 / (2 * self.beta)
        return (u - target) ** 2 + (v + target) ** 2
