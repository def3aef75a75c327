"""Does a model's balancing loss of experts come out as its own forward computes it? Asked once, on eight tokens.

Comes in: an `AnswerLogProbs` that still has an attention of transformers. Goes out: nothing, or a ConfigError. Decision: the
model is asked, as with its head: a family whose router logits mean something else is refused, not approximated.
"""

from __future__ import annotations

import torch

from raydpo.errors import ConfigError
from raydpo.models.balancing import KEY
from raydpo.models.logprobs import AnswerLogProbs, SequenceBatch
from raydpo.models.routing import balancing_loss

TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4}
"""Of the balancing loss against the model's own, by dtype, as a share; 0.05 for the others."""


@torch.no_grad()
def check_routing(scoring: AnswerLogProbs, top_k: int) -> None:
    """Compare the balancing loss with the model's own on eight tokens. Raises ConfigError where there is none, or another."""
    model, name = scoring.model, type(scoring.model).__name__
    device = next(model.parameters()).device
    ids = torch.arange(8, device=device)[None] % model.config.get_text_config().vocab_size
    nothing = torch.zeros(0, dtype=torch.int64, device=device)
    batch = SequenceBatch(ids, torch.ones_like(ids), nothing, nothing, nothing, 1)
    try:
        theirs = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, output_router_logits=True)
        expected, (probabilities, choices) = float(theirs.aux_loss), scoring(batch, "nothing", top_k)[1]
    except (AttributeError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise ConfigError(
            f"{KEY}: {name} gives no router logits ({error}), so its balancing loss cannot be had. Nothing was trained. Set "
            f"{KEY}: off."
        ) from error
    ours = float(balancing_loss(probabilities, choices, top_k))
    if abs(ours - expected) > TOLERANCE.get(model.dtype, 0.05) * abs(expected):
        raise ConfigError(
            f"{KEY}: {name} computes its balancing loss in a way that raydpo does not know: {expected:.6g} on a probe where "
            f"load_balancing_loss_func gives {ours:.6g}. Nothing was trained. Set {KEY}: off."
        )
