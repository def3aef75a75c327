"""Supervised fine-tuning: the negative log-likelihood of the (chosen) answer.

    loss = - sum_t log pi(y_t | x, y_<t)      divided by the chosen answers' tokens of the global batch

No reference. The mean is over tokens of the whole global batch, not over examples: a long answer weighs more; `nll` is the
mean over examples.
"""

from __future__ import annotations

from dataclasses import dataclass

from raydpo.objectives.seam import Objective, ObjectiveInput, ObjectiveOutput, weight_metrics


@dataclass(frozen=True)
class SFT(Objective):
    """No parameters."""

    unit = "tokens"

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        nats = inputs.answer_sums(inputs.policy_nats)[:, 0]
        loss_sum = -inputs.weighted(nats).sum()
        tokens = inputs.answer_lengths()[:, 0].sum()
        return ObjectiveOutput(
            loss_sum,
            {
                "loss": (loss_sum.detach(), tokens),
                "logps/chosen": (nats.detach().sum(), len(nats)),
                **weight_metrics(inputs),
            },
        )
