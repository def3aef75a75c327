"""AOT: alignment by optimal transport. What must be higher is higher as a distribution, not pair by pair.

    a = log pi(y_w|x) - log pi(y_l|x)      b = log ref(y_w|x) - log ref(y_l|x)      both sorted over the global batch
    x_i = a_(i) - b_(i)
    loss = -(1 - eps) log sigma(beta x_i) - eps log sigma(-beta x_i)

Melnyk et al. 2024, arXiv 2406.05882, the paired form of algorithm 1; eps is label smoothing. The batch is the global one,
whatever the micro-batches: ranks and accumulation change nothing (TRL sorts each micro-batch by itself). Equal values keep
the order of the batch. At equal policy and reference every x_i is 0 and the loss is ln 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from raydpo.objectives.seam import BatchObjective, ObjectiveInput, ObjectiveOutput, from_log_ratios


@dataclass(frozen=True)
class AOT(BatchObjective):
    """beta: 1/nats, > 0. label_smoothing: eps in [0, 0.5)."""

    beta: float = 0.01
    label_smoothing: float = 0.0
    num_values = 2

    def observe(self, inputs: ObjectiveInput) -> Tensor:
        """[a, b] of each pair."""
        ratios, reference = inputs.log_ratios(), inputs.reference_margins()
        return torch.stack([ratios[:, 0] - ratios[:, 1] + reference, reference], dim=1)

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        batch, positions = inputs.observed()
        partners = batch[:, 1].sort().values[ranks(batch[:, 0])[positions]]
        shift = (batch[positions, 1] - partners).to(inputs.policy_nats.dtype)  # a - partner = (u - v) + b - partner
        return from_log_ratios(inputs, self.beta, lambda u, v: self.losses(u - v + shift))

    def losses(self, x: Tensor) -> Tensor:
        """Of each pair, from x in nats: [E]."""
        logits, eps = self.beta * x, self.label_smoothing
        return -(1 - eps) * logsigmoid(logits) - eps * logsigmoid(-logits)


@dataclass(frozen=True)
class AOTUnpaired(AOT):
    """The unpaired form: u_(i) against v_(i), the log-ratios of all chosen and of all rejected answers, each sorted.

    Both members of x_i = u_(i) - v_(i) have a gradient but mostly stand in different micro-batches. Each example takes
    its u against the partner's value and its v likewise, which gives the whole gradient and counts each x_i twice; the
    value is halved, the gradient is not.
    """

    name = "aot_unpaired"

    def observe(self, inputs: ObjectiveInput) -> Tensor:
        """[u, v] of each pair."""
        return inputs.log_ratios()

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        batch, positions = inputs.observed()
        u, v = batch.to(inputs.policy_nats.dtype).unbind(dim=1)
        v_of_u = v.sort().values[ranks(batch[:, 0])[positions]]
        u_of_v = u.sort().values[ranks(batch[:, 1])[positions]]

        def losses(mine_u: Tensor, mine_v: Tensor) -> Tensor:
            both = self.losses(mine_u - v_of_u) + self.losses(u_of_v - mine_v)
            return both - both.detach() / 2

        return from_log_ratios(inputs, self.beta, losses)


def ranks(values: Tensor) -> Tensor:
    """Place of each of [B] values in their rising order, equal ones in the order given: [B] int64."""
    order = values.argsort(stable=True)
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
