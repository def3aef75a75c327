"""How much arithmetic a sequence is, from the shape of a model: for balancing ranks and for the lower bound of a step.

Matrix products only, 2 FLOPs a multiply-add: 2 N_b a token for the decoder's weights, 2 hV an answer token for the head,
4 L a for each (query, key) pair of attention, L layers of a = heads x head size. Decision: a training step is 3, 4 and 3.5
times that: chunks of the head are recomputed in the backward pass, and so are attention's scores. A mixture of experts
is counted with all its experts, and an answer with a mask with all its tokens, which shifts the balance of ranks a little and
no number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from raydpo.models.packed import num_weights

Count = int | float | np.ndarray


@dataclass(frozen=True)
class Work:
    """FLOPs of a forward. The default counts tokens.

    token: for each token.
    answer_token: for each answer token.
    attended: for each (query, key) pair.
    """

    token: float = 1.0
    answer_token: float = 0.0
    attended: float = 0.0

    def forward(self, tokens: Count, answer_tokens: Count, attended: Count) -> Any:
        """Of a reference pass. The three counts may be arrays of one shape."""
        return self.token * tokens + self.answer_token * answer_tokens + self.attended * attended

    def step(self, tokens: Count, answer_tokens: Count, attended: Count) -> Any:
        """Of forward and backward with all weights trained and nothing checkpointed but the head."""
        return self.forward(3.0 * tokens, 4.0 * answer_tokens, 3.5 * attended)


TOKENS = Work()
"""Every token is the same work."""


def work_of(model: Any) -> Work:
    """The work of a causal LM, before anything shards or adapts its weights."""
    config = model.config.get_text_config()
    decoder = sum(num_weights(p) for p in model.get_decoder().parameters() if p.dim() > 1)
    decoder -= model.get_input_embeddings().weight.numel()
    heads = config.num_attention_heads if hasattr(config, "num_attention_heads") else 0
    head_size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    return Work(
        token=2.0 * decoder,
        answer_token=2.0 * model.get_output_embeddings().weight.numel(),
        attended=4.0 * config.num_hidden_layers * heads * head_size,
    )


def shared_prompt_counts(prompt: np.ndarray, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens, answer tokens, attended pairs) of examples whose answers share the prompt, each [E] int64.

    prompt: [E], answers: [E, K] lengths. Each segment's (query, key) pairs are counted whole, as kernels that know no
    triangle compute them, and as they are counted for padded rows: (P + C)^2 + R (P + R).
    """
    first, rest = answers[:, :1].sum(axis=1), answers[:, 1:]
    attended = (prompt + first) ** 2 + (rest * (prompt[:, None] + rest)).sum(axis=1)
    return prompt + answers.sum(axis=1), answers.sum(axis=1), attended


def row_counts(prompt: np.ndarray, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same of examples whose rows stand alone, each with its own copy of the prompt, without padding."""
    rows = prompt[:, None] + answers
    return rows.sum(axis=1), answers.sum(axis=1), (rows**2).sum(axis=1)
