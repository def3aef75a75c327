"""A tiny random model of any family: one recipe of small sizes, and what some families need besides.

Comes in: a model_type of transformers. Goes out: a model folder. Decision: a config takes from the recipe the keys that it
has, so that most families need no line of their own; heads have 32 numbers, which vLLM serves on a CPU. Weights are four times
as large as transformers draws them, or every token would be about equally likely.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from raydpo.quickstart.bpe import train_bpe

TEXTS = ("sort 12 34 56 78 90 no",)
VOCABULARY = 280
COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_intermediate_size": 48,
    "n_group": 1,
    "topk_group": 1,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 128,
    "first_k_dense_replace": 1,
    "shared_expert_intermediate_size": 48,
    "partial_rotary_factor": 1.0,
}
MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 32}
MAMBA = {
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_n_groups": 1,
}
VISION = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 14,
    "out_hidden_size": 64,
}
SECTIONS = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}

TWEAKS: dict[str, dict[str, Any]] = {
    "bamba": {**MAMBA, "attn_layer_indices": [1], "mamba_chunk_size": 16},
    "bloom": {"vocab_size": VOCABULARY},
    "dbrx": {
        **{"d_model": 64, "n_layers": 2, "n_heads": 2, "max_seq_len": 128},
        "attn_config": {"kv_n_heads": 1, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 64},
    },
    "deepseek_v2": MLA,
    "deepseek_v3": MLA,
    "deepseek_v32": {**MLA, "index_n_heads": 2, "index_head_dim": 16, "index_topk": 64},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 128, "mamba_chunk_size": 16},
    "falcon_mamba": {"state_size": 8, "time_step_rank": 4},
    "gemma3": {
        "text_config": {"sliding_window": 32},
        "vision_config": {**VISION, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28},
        "mm_tokens_per_image": 4,
    },
    "gpt_oss": {"sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]},
    "gptj": {"rotary_dim": 16},
    "granitemoehybrid": {
        **MAMBA,
        "mamba_chunk_size": 16,
        "layer_types": ["mamba", "attention"],
        "shared_intermediate_size": 48,
    },
    "granitemoeshared": {"shared_intermediate_size": 48},
    "gpt_neo": {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]], "window_size": 32},
    "jamba": {
        **{"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
        **{"use_mamba_kernels": False, "mamba_d_state": 8, "mamba_dt_rank": 4},
    },
    "jetmoe": {"kv_channels": 32, "num_key_value_heads": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "llama4": {
        "text_config": {"intermediate_size_mlp": 96, "layer_types": ["chunked_attention", "full_attention"]},
        "vision_config": {
            **{
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 128,
                "image_size": 28,
            },
            **{"patch_size": 14, "vision_output_dim": 64, "projector_input_dim": 64, "projector_output_dim": 64},
        },
    },
    "llama4_text": {"intermediate_size_mlp": 96, "attention_chunk_size": 64},
    "mamba": {"state_size": 8, "time_step_rank": 4},
    "mamba2": {"state_size": 8, "num_heads": 4, "head_dim": 32, "n_groups": 1, "chunk_size": 16},
    "minimax": {"layer_types": ["linear_attention", "full_attention"], "block_size": 16},
    "mpt": {"d_model": 64, "n_layers": 2, "n_heads": 2, "expansion_ratio": 2, "max_seq_len": 128},
    "nemotron_h": {
        **{"mamba_num_heads": 4, "mamba_head_dim": 32, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 16},
        **{"layers_block_type": ["mamba", "attention"]},
    },
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "qwen2_5_vl": {
        "text_config": SECTIONS,
        "vision_config": {**VISION, "fullatt_block_indexes": [0]},
    },
    "qwen2_vl": {
        "text_config": SECTIONS,
        "vision_config": {
            "depth": 1,
            "embed_dim": 32,
            "hidden_size": 64,
            "num_heads": 2,
            "patch_size": 14,
            "mlp_ratio": 2,
        },
    },
    "qwen3_5": {
        "text_config": {**SECTIONS, **LINEAR, "layer_types": ["linear_attention", "full_attention"]},
        "vision_config": {**VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": []},
    },
    "qwen3_5_text": {**SECTIONS, **LINEAR, "layer_types": ["linear_attention", "full_attention"]},
    "qwen3_next": {**LINEAR, "layer_types": ["linear_attention", "full_attention"]},
    "qwen3_vl": {
        "text_config": SECTIONS,
        "vision_config": {**VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
    },
}
WITHOUT_KEY = {
    "falcon": ("head_dim",),
    "deepseek_v3": ("head_dim",),
    "deepseek_v32": ("head_dim", "num_key_value_heads"),
}
"""Keys of the recipe that a family computes from others."""
FAMILIES = sorted(
    {
        *TWEAKS,
        *[
            "apertus",
            "arcee",
            "cohere",
            "cohere2",
            "dbrx",
            "ernie4_5",
            "ernie4_5_moe",
            "exaone4",
            "falcon",
            "flex_olmo",
            "gemma",
            "gemma2",
            "gemma3_text",
            "glm",
            "glm4",
        ],
        *[
            "glm4_moe",
            "gpt2",
            "gpt_bigcode",
            "gpt_neox",
            "granite",
            "granitemoe",
            "helium",
            "hunyuan_v1_dense",
            "llama",
            "mistral",
            "mixtral",
        ],
        *[
            "nemotron",
            "olmo",
            "olmo2",
            "olmo3",
            "olmoe",
            "persimmon",
            "phi",
            "phi3",
            "phimoe",
            "qwen2",
            "qwen2_moe",
            "qwen3",
            "qwen3_moe",
            "seed_oss",
        ],
        *["smollm3", "stablelm", "starcoder2"],
    }
)


def write_random_model(family: str, folder: Path) -> None:
    """Write a model of `family` with random weights, and a tokenizer that fits it, to `folder`."""
    from transformers import AutoConfig
    from transformers.utils import logging

    from raydpo.models.auto_class import auto_class

    logging.disable_progress_bar()
    tokenizer = train_bpe(list(TEXTS) * 2, VOCABULARY)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    known = {"vocab_size": len(tokenizer), **ids}
    tweaks = dict(TWEAKS.get(family, {}))
    default = AutoConfig.for_model(family)
    if "text_config" in tweaks:
        tweaks["text_config"] = {**_fitting(default.text_config), **known, **tweaks["text_config"]}
        config = AutoConfig.for_model(family, **tweaks)
    else:
        config = AutoConfig.for_model(family, **{**_fitting(default), **known, **tweaks})
    torch.manual_seed(0)
    model = auto_class(config.to_dict()).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _fitting(config: Any) -> dict[str, Any]:
    given = {key: value for key, value in COMMON.items() if hasattr(config, key)}
    return {key: value for key, value in given.items() if key not in WITHOUT_KEY.get(config.model_type, ())}
