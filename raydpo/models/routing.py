"""What the routers of a mixture of experts did with a batch, counted as its padded rows would count it.

Comes in: the router logits of each layer and the batch. Goes out: two sums an expert, which add up over micro-batches and
ranks. Decision: a token of a stream that K rows read counts K times and padding not at all, so that every layout has the sums
of transformers' `load_balancing_loss_func` on padded rows; the price is nothing but this count.

Shapes: T tokens of the ids (padded S x T of them), E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from raydpo.models.logprobs import SequenceBatch


def row_counts(batch: SequenceBatch) -> Tensor:
    """In how many rows each place of the ids is a real token: [T] or [S x T] int64."""
    if batch.segments is None:
        mask = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
        return mask.flatten()
    assert batch.readers is not None
    counts = torch.zeros(batch.input_ids.numel(), dtype=torch.int64)
    for (start, stop, first, end), readers in zip(batch.segments, batch.readers, strict=True):
        counts[start:stop] += readers
        counts[first:end] += readers
    return counts.to(batch.input_ids.device)


def tally(router_logits: Sequence[Tensor], counts_T: Tensor, top_k: int) -> Tensor:
    """[2, E], of all layers: the sum of each expert's probability, with gradient, and how often it was among the `top_k`.

    In float32, or float64 where the logits are.
    """
    probabilities: list[Tensor] = []
    choices: list[Tensor] = []
    for logits in router_logits:
        wide_TE = logits.flatten(0, -2)
        probability_TE = (wide_TE if wide_TE.dtype == torch.float64 else wide_TE.float()).softmax(-1)
        weights_T = counts_T.to(probability_TE)
        chosen_TE = torch.zeros_like(probability_TE).scatter_(1, probability_TE.topk(top_k, dim=-1).indices, 1.0)
        probabilities.append(weights_T @ probability_TE)
        choices.append(weights_T @ chosen_TE)
    return torch.stack([torch.stack(probabilities).sum(0), torch.stack(choices).sum(0).detach()])


def balancing_loss(probabilities_E: Tensor, choices_E: Tensor, top_k: int) -> Tensor:
    """E x sum over experts of (share of tokens that chose it) x (mean probability); top_k where routing is even.

    choices_E: of the whole batch, which also gives the number of tokens. probabilities_E: of the whole batch, or of a part of
    it for that part's share in the loss.
    """
    tokens = choices_E.sum() / top_k
    loss: Tensor = len(choices_E) * ((choices_E / tokens) * (probabilities_E / tokens)).sum()
    return loss


def experts_per_token(model: Any) -> int:
    """How many experts a token asks, as the model's own balancing loss reads it; 0 where it does not say."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    of_text = getattr(base.config.get_text_config(), "num_experts_per_tok", None)
    return int(getattr(base, "num_experts_per_tok", None) or of_text or 0)
