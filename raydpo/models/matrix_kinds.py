"""The kind of a matrix by its name: attention, mlp, experts, head and so on. Torch-free.

Decision: names are asked, since families share names and no interface; an unknown one is other.
"""

from __future__ import annotations

import re

EXPERTS = "experts"
ROUTER = "router"
HEAD = "head"
EMBEDDING = "embedding"
OTHER_SENSES = "vision or sound"
_KINDS = (
    (OTHER_SENSES, r"(^|\.)(vision|visual|audio|image|multi_modal|mm_|embed_vision|embed_audio)"),
    (ROUTER, r"(^|\.)(router|gate|wg|shared_expert_gate|shared_experts_gate)(\.|$)"),
    (EXPERTS, r"(^|\.)\w*experts?(\.|$)"),
    (HEAD, r"(^|\.)(lm_head|embed_out|score|output_projection)(\.|$)"),
    (EMBEDDING, r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings|wpe|embeddings?)(\.|$)"),
    ("attention", r"(attn|attention|(^|\.)(q|k|v|o|qkv|out)_proj(\.|$)|query_key_value|(^|\.)mixer)"),
    ("mlp", r"(mlp|feed_forward|ffn|(^|\.)(fc\d?|gate_proj|up_proj|down_proj|w[123]|dense\w*|c_fc|c_proj)(\.|$))"),
)


def kind_of_matrix(name: str) -> str:
    """Of the matrix or module `name`: attention, mlp, experts, router, head, embedding, vision or sound, or other."""
    return next((kind for kind, pattern in _KINDS if re.search(pattern, name)), "other")
