"""The negative log-likelihood of the (chosen) answer, per token of that answer.

    loss = - (1 / |y|) sum_t log pi(y_t | x, y_<t)      the mean is over examples: every answer weighs the same

No reference. As a second term with `dpo` it is the NLL term of iterative RPO, Pang et al. 2024, arXiv 2404.19733,
equation 2 (their weight alpha is 1). `sft` is the mean over all tokens of the batch instead.
"""

from __future__ import annotations

from dataclasses import dataclass

from raydpo.objectives.seam import Objective, ObjectiveInput, ObjectiveOutput, weight_metrics


@dataclass(frozen=True)
class NLL(Objective):
    """No parameters."""

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        nats = inputs.answer_sums(inputs.policy_nats)[:, 0]
        each = inputs.weighted(-nats / inputs.answer_lengths()[:, 0])
        return ObjectiveOutput(
            each.sum(),
            {
                "loss": (each.detach().sum(), len(each)),
                "logps/chosen": (nats.detach().sum(), len(each)),
                **weight_metrics(inputs),
            },
        )
