"""The seam between a model and an objective: per-token log-probs in, sums and counts out.

Decision: an objective never divides. It returns the sum of its loss over the examples (or answer tokens) it was given
and says in which unit it counts; the step divides by the count of the whole global batch, so that micro-batches,
ranks and accumulation change nothing. Objectives share code through this file only: what differs between two of them
is a function of two scores, everything around it (sums, means, metrics, ties) is here once.

Shapes: E examples, A answers an example (2 for pairs: chosen, rejected), S sequences, N answer tokens. Of an answer with a
mask, N has the tokens that the loss covers and no others: sums, lengths and places within an answer are of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class ObjectiveInput:
    """What an objective may read.

    policy_nats: [N] log-prob of each answer token under the policy, with gradient.
    reference_nats: [N] the same under the reference, None for objectives without one.
    sequences: [N] int64, the sequence of each token.
    answers: [E, A] int64, the sequence of each answer of each example.
    num_sequences: S.
    tie_tolerance_nats: margins of log-ratios within this of 0 are ties.
    labels: [E] bool, whether the answer is desirable.
    example_weights: [E], factors of the loss of each example, None for 1.
    token_weights: [N], factors of log-probs in sums over an answer, None for 1.
    length_normalized: log-ratios are divided by the tokens of their answer in the loss.
    log_collisions: [N] log sum_v pi(v)^2 at each answer token, no gradient.
    batch: [B, k] float64, what `observe` saw of every example of the global batch, in its order, no gradient.
    positions: [E] int64, where the examples here stand in it.
    """

    policy_nats: Tensor
    reference_nats: Tensor | None
    sequences: Tensor
    answers: Tensor
    num_sequences: int
    tie_tolerance_nats: float = 1e-3
    labels: Tensor | None = None
    example_weights: Tensor | None = None
    token_weights: Tensor | None = None
    length_normalized: bool = False
    log_collisions: Tensor | None = None
    batch: Tensor | None = None
    positions: Tensor | None = None

    def answer_sums(self, token_values: Tensor) -> Tensor:
        """Sum [N] token values over each answer: [E, A]."""
        sums = torch.zeros(self.num_sequences, dtype=token_values.dtype, device=token_values.device)
        return sums.index_add(0, self.sequences, token_values)[self.answers]

    def answer_lengths(self) -> Tensor:
        """Tokens of each answer in the loss, as numbers that divide: [E, A] in the dtype of `policy_nats`."""
        return self.answer_sums(torch.ones_like(self.policy_nats))

    def log_ratios(self) -> Tensor:
        """log policy/reference of each answer, tokens weighted: [E, A] nats, with gradient.

        Token by token and then summed: the difference of two sums of hundreds of nats would lose what float32 holds of
        a few.
        """
        return self._weighted_sums(self.policy_nats - self.reference())

    def reference_margins(self) -> Tensor:
        """Log-prob of the chosen less that of the rejected answer under the reference, tokens weighted: [E] nats."""
        sums = self._weighted_sums(self.reference())
        return sums[:, 0] - sums[:, 1]

    def weighted(self, each: Tensor) -> Tensor:
        """[E] losses (or what they are made of) with the weight of each example."""
        return each if self.example_weights is None else each * self.example_weights

    def reference(self) -> Tensor:
        """`reference_nats`, present by contract for objectives whose table row says needs_reference."""
        assert self.reference_nats is not None, "the objective needs a reference and the batch has none"
        return self.reference_nats

    def desirable(self) -> Tensor:
        """`labels`, present by contract for objectives whose table row says data: labels."""
        assert self.labels is not None, "the objective needs labels and the batch has none"
        return self.labels

    def observed(self) -> tuple[Tensor, Tensor]:
        """(`batch`, `positions`), present by contract for objectives that `observe`."""
        assert self.batch is not None, "the objective needs the global batch and nobody looked at it"
        assert self.positions is not None
        return self.batch, self.positions

    def _weighted_sums(self, token_values: Tensor) -> Tensor:
        return self.answer_sums(token_values if self.token_weights is None else self.token_weights * token_values)


@dataclass(frozen=True)
class ObjectiveOutput:
    """loss_sum: scalar with gradient. metrics: name -> (sum, count), no gradient, names as in `raydpo.metrics`."""

    loss_sum: Tensor
    metrics: Mapping[str, tuple[Tensor, int | Tensor]] = field(default_factory=dict)


class Objective(Protocol):
    """Base of every objective: a callable with the unit of its denominator, examples or answer tokens."""

    unit: ClassVar[Literal["examples", "tokens"]] = "examples"

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput: ...


class BatchObjective(Objective, Protocol):
    """An objective whose loss of one example depends on the whole global batch: it is asked twice.

    Decision: every example is observed once, without gradient, and all ranks then hold the table of the global batch;
    the loss of an example is a function of that table and of its own log-probs. Micro-batches, ranks and accumulation
    change nothing; the price is a second forward of what is observed.
    """

    num_values: ClassVar[int]

    def observe(self, inputs: ObjectiveInput) -> Tensor:
        """What the loss must know of each example here: [E, num_values]."""


EXPONENT_MAX = 30.0
"""Above this an exponential goes on as a straight line: e^30 = 1e13, beyond it a gradient norm soon overflows float32."""

PairLosses = Callable[[Tensor, Tensor], Tensor]
"""(score of chosen [E], score of rejected [E]) -> loss of each pair [E]."""


def expm1_or_line(x: Tensor) -> Tensor:
    """exp(x) - 1 up to EXPONENT_MAX and its tangent there beyond: finite, and a gradient that never vanishes."""
    return torch.expm1(x.clamp(max=EXPONENT_MAX)) + math.exp(EXPONENT_MAX) * torch.relu(x - EXPONENT_MAX)


def from_log_ratios(
    inputs: ObjectiveInput,
    beta: float,
    losses: PairLosses,
    *,
    per_token: bool = False,
    clamped: Callable[[Tensor], Tensor] | None = None,
) -> ObjectiveOutput:
    """An objective on u = log pi/ref of the chosen and v of the rejected answer, in nats.

    per_token: u and v are divided by the tokens of their answer. clamped: [E, 2] log-ratios -> which of them met a clamp.
    Rewards are beta * u and beta * v.
    """
    policy = inputs.answer_sums(inputs.policy_nats.detach())
    ratios = inputs.answer_sums(inputs.policy_nats - inputs.reference())
    scores = ratios if inputs.token_weights is None else inputs.log_ratios()
    per_token = per_token or inputs.length_normalized
    scores = scores / inputs.answer_lengths() if per_token else scores
    output = _output(inputs, policy, scores, beta, losses, per_token, clamped)
    ratios = ratios.detach()
    pairs = len(ratios)
    more = {
        "log_ratios/abs": (ratios.abs().sum(), 2 * pairs),
        "log_ratios/chosen": (ratios[:, 0].sum(), pairs),
        "log_ratios/rejected": (ratios[:, 1].sum(), pairs),
        "log_ratios/margins": ((ratios[:, 0] - ratios[:, 1]).sum(), pairs),
    }
    return ObjectiveOutput(output.loss_sum, {**output.metrics, **more})


def from_labels(
    inputs: ObjectiveInput, beta: float, losses: Callable[[Tensor, Tensor], Tensor], middle_nats: Tensor | float = 0.0
) -> ObjectiveOutput:
    """An objective on u = log pi/ref of one answer an example, in nats, and its label: losses(u [E], desirable [E]) -> [E].

    middle_nats: the threshold between desirable and undesirable answers; the accuracy counts answers on their label's side.
    """
    ratios, desirable = inputs.log_ratios()[:, 0], inputs.desirable()
    each = inputs.weighted(losses(ratios, desirable))
    ratios, examples = ratios.detach(), len(each)
    policy = inputs.answer_sums(inputs.policy_nats.detach())[:, 0]
    signed = torch.where(desirable, 1.0, -1.0) * (ratios - middle_nats)
    ties = signed.abs() <= inputs.tie_tolerance_nats
    wins = (signed > inputs.tie_tolerance_nats).to(ratios.dtype) + ties.to(ratios.dtype) / 2
    metrics: dict[str, tuple[Tensor, int | Tensor]] = {
        "loss": (each.detach().sum(), examples),
        "log_ratios/abs": (ratios.abs().sum(), examples),
        "rewards/accuracies": (wins.sum(), examples),
        "rewards/ties": (ties.sum(), examples),
        **weight_metrics(inputs),
    }
    for side, of_side in (("chosen", desirable), ("rejected", ~desirable)):
        metrics[f"rewards/{side}"] = (beta * ratios[of_side].sum(), of_side.sum())
        metrics[f"log_ratios/{side}"] = (ratios[of_side].sum(), of_side.sum())
        metrics[f"logps/{side}"] = (policy[of_side].sum(), of_side.sum())
    return ObjectiveOutput(each.sum(), metrics)


def from_log_probs(
    inputs: ObjectiveInput,
    scale: float,
    losses: PairLosses,
    *,
    per_token: bool = False,
    clamped: Callable[[Tensor], Tensor] | None = None,
) -> ObjectiveOutput:
    """An objective without a reference, on the log-probs of the answers, in nats; options as in `from_log_ratios`.

    Rewards are scale * log-prob.
    """
    policy = inputs.answer_sums(inputs.policy_nats)
    scores = policy / inputs.answer_lengths() if per_token else policy
    return _output(inputs, policy, scores, scale, losses, per_token, clamped)


def _output(
    inputs: ObjectiveInput,
    policy: Tensor,
    scores: Tensor,
    scale: float,
    losses: PairLosses,
    per_token: bool,
    clamped: Callable[[Tensor], Tensor] | None,
) -> ObjectiveOutput:
    each = inputs.weighted(losses(scores[:, 0], scores[:, 1]))
    loss_sum, pairs = each.sum(), len(each)
    scores, policy = scores.detach(), policy.detach()
    margins = scores[:, 0] - scores[:, 1]
    tolerance = inputs.tie_tolerance_nats
    within: Tensor | float = tolerance / inputs.answer_lengths().amin(dim=1) if per_token else tolerance
    ties = (margins.abs() <= within).to(policy.dtype)
    wins = (margins > within).to(policy.dtype)
    metrics: dict[str, tuple[Tensor, int | Tensor]] = {
        "loss": (loss_sum.detach(), pairs),
        "rewards/chosen": (scale * scores[:, 0].sum(), pairs),
        "rewards/rejected": (scale * scores[:, 1].sum(), pairs),
        "rewards/margins": (scale * margins.sum(), pairs),
        "rewards/accuracies": ((wins + ties / 2).sum(), pairs),
        "rewards/ties": (ties.sum(), pairs),
        "logps/chosen": (policy[:, 0].sum(), pairs),
        "logps/rejected": (policy[:, 1].sum(), pairs),
        **weight_metrics(inputs),
    }
    if clamped is not None:
        metrics["clamped"] = (clamped(scores).to(policy.dtype).sum(), 2 * pairs)
    return ObjectiveOutput(loss_sum, metrics)


def weight_metrics(inputs: ObjectiveInput) -> dict[str, tuple[Tensor, int | Tensor]]:
    """The mean factor of an example's loss, where examples have one."""
    weights = inputs.example_weights
    return {} if weights is None else {"weights": (weights.detach().sum(), len(weights))}
