"""What the modifiers of a term do to what its objective reads.

LD-DPO (Liu et al. 2024, arXiv 2409.06411): with P tokens in the shorter answer of a pair, log-probs of tokens beyond P
count ld_alpha, under the policy and under the reference alike; under the policy alone, the margin of answers of unlike
length would not start at 0.

WPO (Zhou et al. 2024, arXiv 2406.11827, equation 2 with sampled alignment): the loss of a pair is multiplied by w(y_w)
w(y_l), w(y) = exp((1 / |y|) sum_t [log pi(y_t) - log sum_v pi(v)^2]), no gradient. An answer as likely as one that the
policy samples itself has weight 1. Weights are not clamped; the metric `weights` is their mean.

Of an answer with a mask both count the tokens that the loss covers: P is the smaller number of them, |y| is it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from raydpo.objectives.seam import ObjectiveInput


def modified(inputs: ObjectiveInput, modifiers: Mapping[str, float | bool]) -> ObjectiveInput:
    """`inputs` as an objective with `modifiers` reads them."""
    if (alpha := modifiers.get("ld_alpha", 1.0)) != 1:
        inputs = replace(inputs, token_weights=_tail_weights(inputs, alpha))
    if modifiers.get("length_normalized"):
        inputs = replace(inputs, length_normalized=True)
    if modifiers.get("wpo"):
        weights, column = _on_policy_weights(inputs), inputs.example_weights
        inputs = replace(inputs, example_weights=weights if column is None else weights * column)
    return inputs


def _tail_weights(inputs: ObjectiveInput, alpha: float) -> Tensor:
    """1 for tokens within the length of the pair's shorter answer, alpha for those beyond: [N]."""
    lengths = torch.bincount(inputs.sequences, minlength=inputs.num_sequences)
    starts = lengths.cumsum(0) - lengths
    place = torch.arange(len(inputs.sequences), device=lengths.device) - starts[inputs.sequences]
    shared = torch.zeros_like(lengths)
    shared[inputs.answers] = lengths[inputs.answers].amin(dim=1, keepdim=True).expand_as(inputs.answers)
    return torch.where(place < shared[inputs.sequences], 1.0, alpha).to(inputs.policy_nats.dtype)


def _on_policy_weights(inputs: ObjectiveInput) -> Tensor:
    assert inputs.log_collisions is not None, "weights need the policy's collision probabilities"
    aligned = inputs.policy_nats.detach() - inputs.log_collisions
    return (inputs.answer_sums(aligned) / inputs.answer_lengths()).sum(dim=1).exp()
