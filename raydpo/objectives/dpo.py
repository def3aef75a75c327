"""DPO, sigmoid form, with label smoothing (cDPO).

    u = log pi(y_w|x) - log ref(y_w|x)      v = log pi(y_l|x) - log ref(y_l|x)      d = u - v
    loss = -(1 - eps) log sigma(beta d) - eps log sigma(-beta d)

Rafailov et al. 2023, arXiv 2305.18290, equation 7; label smoothing: Mitchell, "A note on DPO with noisy preferences"
(cDPO), equation 3, with 0 <= eps < 1/2 the probability that a label is flipped. eps = 0 is DPO. At u = v the loss is ln 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch.nn.functional import logsigmoid

from raydpo.objectives.seam import ObjectiveInput, ObjectiveOutput, preference_metrics


@dataclass(frozen=True)
class DPO:
    """beta: 1/nats, > 0. label_smoothing: eps in [0, 0.5)."""

    beta: float = 0.1
    label_smoothing: float = 0.0
    unit: ClassVar[Literal["pairs", "tokens"]] = "pairs"

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        policy = inputs.answer_sums(inputs.policy_nats)
        reference = inputs.answer_sums(inputs.reference())
        ratios = policy - reference
        logits = self.beta * (ratios[:, 0] - ratios[:, 1])
        losses = -(1 - self.label_smoothing) * logsigmoid(logits) - self.label_smoothing * logsigmoid(-logits)
        loss_sum = losses.sum()
        metrics = preference_metrics(inputs, policy, reference, self.beta)
        return ObjectiveOutput(loss_sum, {"loss": (loss_sum.detach(), len(losses)), **metrics})
