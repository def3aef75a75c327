"""IPO on log-ratios per token.

    u = log pi(y_w|x) - log ref(y_w|x)      v = log pi(y_l|x) - log ref(y_l|x)      d = u - v
    loss = (u / |y_w| - v / |y_l| - 1 / (2 beta))^2

Azar et al. 2023, arXiv 2310.12036, equation 17 on means instead of sums over answer tokens. The paper prints sums
(`ipo`); the mean is what TRL runs under the name ipo, saying that the paper's authors confirmed it. At u = v the loss
is 1 / (4 beta^2). Rewards are beta times the mean log-ratio of a token.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from raydpo.objectives.seam import Objective, ObjectiveInput, ObjectiveOutput, from_log_ratios


@dataclass(frozen=True)
class IPOMean(Objective):
    """beta: the paper's tau, tokens/nats, > 0."""

    beta: float = 0.1

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        return from_log_ratios(inputs, self.beta, self.losses, per_token=True)

    def losses(self, u: Tensor, v: Tensor) -> Tensor:
        """Of each pair, from mean log-ratios in nats a token: [E]."""
        return (u - v - 1 / (2 * self.beta)) ** 2
