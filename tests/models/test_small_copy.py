"""A small copy of a model: its layers are the model's, its cost is the model's, and making it costs the same at any depth."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from raydpo.models.layout import choose_layout
from raydpo.models.logprobs import AnswerLogProbs
from raydpo.models.lora import add_lora
from raydpo.models.memory import measure
from raydpo.models.pretrained import switch_dropout_off
from raydpo.models.small_copy import scale_between, small_copy, text_layers

SMALL = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 160}
SHAPES = {
    "llama": {**SMALL, "num_hidden_layers": 9, "vocab_size": 1500},
    "qwen3": {**SMALL, "num_hidden_layers": 6, "vocab_size": 500, "head_dim": 16, "tie_word_embeddings": True},
    "gemma3_text": {**SMALL, "num_hidden_layers": 13, "vocab_size": 1500, "head_dim": 16, "sliding_window": 4},
    "gpt2": {"n_embd": 64, "n_layer": 7, "n_head": 4, "vocab_size": 700, "n_positions": 256},
    "qwen2_moe": {
        **SMALL,
        **{"num_hidden_layers": 6, "vocab_size": 500, "num_experts": 4, "num_experts_per_tok": 2},
        **{"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "mlp_only_layers": [0, 1]},
    },
}


def model_of(family: str, dtype: torch.dtype = torch.float32, **more: object) -> torch.nn.Module:
    shape = {**SHAPES[family], **more}
    config = AutoConfig.for_model(family, **shape, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype)
    return switch_dropout_off(model).eval()


@pytest.mark.parametrize(
    ("family", "layers", "further"),
    [
        ("llama", 2, (7, 0)),
        ("gemma3_text", 4, (0, 9, 0, 0)),
        ("gpt2", 2, (5, 0)),
        ("qwen2_moe", 4, (0, 0, 2, 0)),
    ],
)
def test_two_layers_of_every_kind_stand_for_all(family, layers, further):
    model = model_of(family)
    copy = small_copy(model)
    assert len(text_layers(copy)) == layers
    scale = scale_between(copy, model)
    assert scale.further == further
    assert scale.num_layers == layers + sum(further)


CASES = {
    "llama": ("llama", "auto", torch.float32, False),
    "llama in bf16": ("llama", "auto", torch.bfloat16, False),
    "llama with lora": ("llama", "auto", torch.float32, True),
    "llama that keeps attention scores": ("llama", "eager", torch.float32, False),
    "qwen3, tied, padded": ("qwen3", "sdpa", torch.float32, False),
    "gemma3, two kinds of layers": ("gemma3_text", "auto", torch.float32, False),
    "gpt2": ("gpt2", "auto", torch.float32, False),
    "qwen2_moe, two kinds of layers": ("qwen2_moe", "auto", torch.float32, False),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_copy_costs_what_the_model_costs(case):
    family, attention, dtype, has_lora = CASES[case]
    model = model_of(family, dtype)
    copy = small_copy(model)
    layouts, costs, subjects = set(), [], []
    for each in (model, copy):
        if attention == "eager":
            each.set_attn_implementation("eager")
        layouts.add(choose_layout(each, attention)[0])
        if has_lora:
            each = add_lora(each, rank=4, alpha=8, target_modules="all-linear", seed=0)
        subjects.append(each.train())
    (layout,) = layouts
    for each, scale in zip(subjects, (None, scale_between(subjects[1], subjects[0])), strict=True):
        costs.append(measure(AnswerLogProbs(each), layout, num_answers=2, length=300, scale=scale))
    expected, found = costs
    assert (found.num_layers, found.head) == (expected.num_layers, expected.head)
    for name in ("kept", "kept_again", "passing", "passing_again"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=0.03), name
    for layers in (0, 1, expected.num_layers):
        assert found.bytes(5000, layers) == pytest.approx(expected.bytes(5000, layers), rel=0.02)
