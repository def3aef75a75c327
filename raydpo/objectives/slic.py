"""SLiC-HF: a hinge on log-probs plus the likelihood of the chosen answer. No reference.

    loss = max(0, delta - log pi(y_w|x) + log pi(y_l|x)) - lambda log pi(y_w|x)

Zhao et al. 2023, arXiv 2305.10425. The paper's likelihood term is on the targets of supervised fine-tuning; a pair has
none, so the chosen answer stands in for them. lambda is `nll_weight`. At equal log-probs and lambda = 0 the loss is
delta. Rewards are the log-prob of the answer, in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import relu

from raydpo.objectives.seam import Objective, ObjectiveInput, ObjectiveOutput, from_log_probs


@dataclass(frozen=True)
class SLiC(Objective):
    """delta: margin in nats, >= 0. nll_weight: of the likelihood term, >= 0."""

    delta: float = 1.0
    nll_weight: float = 0.1

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        return from_log_probs(inputs, 1.0, self.losses)

    def losses(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Of each pair, from log-probs in nats: [E]."""
        return relu(self.delta - chosen + rejected) - self.nll_weight * chosen
