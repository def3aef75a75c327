"""Supervised fine-tuning: the negative log-likelihood of the (chosen) answer.

    loss = - sum_t log pi(y_t | x, y_<t)      divided by the answer tokens of the global batch

No reference. The mean is over tokens of the whole global batch, not over examples: a long answer weighs more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from raydpo.objectives.seam import ObjectiveInput, ObjectiveOutput


@dataclass(frozen=True)
class SFT:
    """No parameters."""

    unit: ClassVar[Literal["pairs", "tokens"]] = "tokens"

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        loss_sum = -inputs.policy_nats.sum()
        answers = inputs.answer_sums(inputs.policy_nats.detach())
        return ObjectiveOutput(
            loss_sum,
            {
                "loss": (loss_sum.detach(), len(inputs.policy_nats)),
                "logps/chosen": (answers[:, 0].sum(), len(answers)),
            },
        )
