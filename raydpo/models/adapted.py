"""What an adapter adapts: matrices counted by kind, and one sentence of it.

Comes in: a model with an adapter of PEFT on it. Goes out: counts. Decision: the kind of a matrix follows from its name, since
families share names and no interface; an unknown one is counted as other, and never left out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from raydpo.models.merging import is_copied, plain_name

EXPERTS = "experts"
ROUTER = "router"
OTHER_SENSES = "vision or sound"
_KINDS = (
    (OTHER_SENSES, r"(^|\.)(vision|visual|audio|image|multi_modal|mm_|embed_vision|embed_audio)"),
    (ROUTER, r"(^|\.)(router|gate|wg|shared_expert_gate|shared_experts_gate)(\.|$)"),
    (EXPERTS, r"(^|\.)\w*experts?(\.|$)"),
    ("head", r"(^|\.)(lm_head|embed_out|score|output_projection)(\.|$)"),
    ("embedding", r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings|wpe|embeddings?)(\.|$)"),
    ("attention", r"(attn|attention|(^|\.)(q|k|v|o|qkv|out)_proj(\.|$)|query_key_value|(^|\.)mixer)"),
    ("mlp", r"(mlp|feed_forward|ffn|(^|\.)(fc\d?|gate_proj|up_proj|down_proj|w[123]|dense\w*|c_fc|c_proj)(\.|$))"),
)


def kind_of_matrix(name: str) -> str:
    """Of the matrix or module `name`: attention, mlp, experts, router, head, embedding, vision or sound, or other."""
    return next((kind for kind, pattern in _KINDS if re.search(pattern, name)), "other")


def adapted(model: Any) -> Mapping[str, int]:
    """Kind -> number of matrices that the adapter on `model` adapts, the most first. A tensor of all experts counts as one."""
    found: Counter[str] = Counter()
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            kind = getattr(module, "parameter_name", "weight")
            found[kind_of_matrix(f"{plain_name(name)}.{kind}")] += 1
    return dict(found.most_common())


def said(model: Any) -> str:
    """One sentence on what the adapter on `model` adapts and trains."""
    counts = ", ".join(f"{number} {kind}" for kind, number in adapted(model).items())
    whole = sorted({plain_name(name) for name, module in model.named_modules() if is_copied(module)})
    copies = f"; trained whole: {', '.join(whole)}" if whole else ""
    trained, every = model.get_nb_trainable_parameters()
    return f"LoRA adapts {counts} matrices{copies}; {trained:,} of {every:,} weights are trained"
