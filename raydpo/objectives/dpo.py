"""DPO, sigmoid form, with label smoothing (cDPO).

    u = log pi(y_w|x) - log ref(y_w|x)      v = log pi(y_l|x) - log ref(y_l|x)      d = u - v
    loss = -(1 - eps) log sigma(beta d) - eps log sigma(-beta d)

Rafailov et al. 2023, arXiv 2305.18290, equation 7; label smoothing: Mitchell, "A note on DPO with noisy preferences"
(cDPO), equation 3, with 0 <= eps < 1/2 the probability that a label is flipped. eps = 0 is DPO. At u = v the loss is ln 2.
`cdpo` is the same with eps > 0; its minimum is at sigma(beta d) = 1 - eps.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from raydpo.objectives.seam import Objective, ObjectiveInput, ObjectiveOutput, from_log_ratios


@dataclass(frozen=True)
class DPO(Objective):
    """beta: 1/nats, > 0. label_smoothing: eps in [0, 0.5)."""

    beta: float = 0.1
    label_smoothing: float = 0.0

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        return from_log_ratios(inputs, self.beta, self.losses)

    def losses(self, u: Tensor, v: Tensor) -> Tensor:
        """Of each pair, from log-ratios in nats: [E]."""
        logits, eps = self.beta * (u - v), self.label_smoothing
        return -(1 - eps) * logsigmoid(logits) - eps * logsigmoid(-logits)


@dataclass(frozen=True)
class CDPO(DPO):
    """DPO with noisy labels. label_smoothing: eps in (0, 0.5)."""

    name = "cdpo"
    label_smoothing: float = 0.1
