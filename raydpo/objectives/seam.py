"""The seam between a model and an objective: per-token log-probs in, sums and counts out.

Decision: an objective never divides. It returns the sum of its loss over the examples (or answer tokens) it was given
and says in which unit it counts; the step divides by the count of the whole global batch, so that micro-batches,
ranks and accumulation change nothing.

Shapes: E examples, A answers an example (2 for pairs: chosen, rejected), S sequences, N answer tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class ObjectiveInput:
    """What an objective may read.

    policy_nats: [N] log-prob of each answer token under the policy, with gradient. reference_nats: [N] the same under the
    reference, None for objectives without one. sequences: [N] int64, the sequence of each token. answers: [E, A] int64,
    the sequence of each answer of each example. num_sequences: S. tie_tolerance_nats: margins of log-ratios
    within this of 0 are ties.
    """

    policy_nats: Tensor
    reference_nats: Tensor | None
    sequences: Tensor
    answers: Tensor
    num_sequences: int
    tie_tolerance_nats: float = 1e-3

    def answer_sums(self, token_values: Tensor) -> Tensor:
        """Sum [N] token values over each answer: [E, A]."""
        sums = torch.zeros(self.num_sequences, dtype=token_values.dtype, device=token_values.device)
        return sums.index_add(0, self.sequences, token_values)[self.answers]

    def reference(self) -> Tensor:
        """`reference_nats`, present by contract for objectives whose table row says needs_reference."""
        assert self.reference_nats is not None, "the objective needs a reference and the batch has none"
        return self.reference_nats


@dataclass(frozen=True)
class ObjectiveOutput:
    """loss_sum: scalar with gradient. metrics: name -> (sum, count), no gradient, names as in `raydpo.metrics`."""

    loss_sum: Tensor
    metrics: Mapping[str, tuple[Tensor, int]] = field(default_factory=dict)


class Objective(Protocol):
    """A callable with the unit of its denominator: examples ("pairs") or answer tokens ("tokens")."""

    unit: ClassVar[Literal["pairs", "tokens"]]

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput: ...


def preference_metrics(
    inputs: ObjectiveInput, policy: Tensor, reference: Tensor, beta: float
) -> dict[str, tuple[Tensor, int]]:
    """Metrics that every paired objective with a reference reports, from [E, 2] answer sums in nats.

    Rewards are beta * log-ratio. A tie counts half an accuracy.
    """
    policy = policy.detach()
    ratios = policy - reference
    margin_nats = ratios[:, 0] - ratios[:, 1]
    ties = (margin_nats.abs() <= inputs.tie_tolerance_nats).to(policy.dtype)
    wins = (margin_nats > inputs.tie_tolerance_nats).to(policy.dtype)
    pairs = len(margin_nats)
    return {
        "rewards/chosen": (beta * ratios[:, 0].sum(), pairs),
        "rewards/rejected": (beta * ratios[:, 1].sum(), pairs),
        "rewards/margins": (beta * margin_nats.sum(), pairs),
        "rewards/accuracies": ((wins + ties / 2).sum(), pairs),
        "rewards/ties": (ties.sum(), pairs),
        "logps/chosen": (policy[:, 0].sum(), pairs),
        "logps/rejected": (policy[:, 1].sum(), pairs),
        "log_ratios/abs": (ratios.abs().sum(), 2 * pairs),
    }
