"""What all-linear adapts, in every family by one rule: attention, mlp and experts; not the head, routers or other senses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from raydpo.errors import ConfigError
from raydpo.models.adapted import adapted, said
from raydpo.models.lora import add_lora
from raydpo.models.matrix_kinds import kind_of_matrix

pytestmark = pytest.mark.filterwarnings("ignore")
BASE = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2},
    **{"intermediate_size": 24, "vocab_size": 64},
}
MOE = {"num_experts_per_tok": 2, "num_local_experts": 4}
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "llama": ({}, {"attention": 8, "mlp": 6}),
    "mixtral": (MOE, {"attention": 8, "experts": 4}),
    "gpt_oss": ({**MOE, "head_dim": 16, "layer_types": ["full_attention"] * 2}, {"attention": 8, "experts": 4}),
    "qwen3_moe": (
        {"head_dim": 16, "moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2},
        {"attention": 8, "experts": 4},
    ),
    "qwen2_moe": (
        {"moe_intermediate_size": 8, "shared_expert_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2},
        {"attention": 8, "experts": 10},
    ),
    "deepseek_v3": (
        {
            **{
                "moe_intermediate_size": 8,
                "n_routed_experts": 4,
                "num_experts_per_tok": 2,
                "n_group": 1,
                "topk_group": 1,
            },
            **{"first_k_dense_replace": 1, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8},
            **{"qk_nope_head_dim": 8, "v_head_dim": 8},
        },
        {"attention": 10, "experts": 5, "mlp": 3},
    ),
}


def fresh(family: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **BASE, **FAMILIES[family][0]))


def lora(model: Any, **settings: Any) -> Any:
    return add_lora(model, **{"rank": 2, "alpha": 4, "target_modules": "all-linear", "seed": 0, **settings})


@pytest.mark.parametrize("family", FAMILIES)
def test_one_rule_for_every_family(family: str) -> None:
    found = lora(fresh(family))
    assert adapted(found) == FAMILIES[family][1]
    scales = {module.scaling["default"] for module in found.modules() if hasattr(module, "get_delta_weight")}
    assert scales == {2.0}
    assert all(f"{number} {kind}" in said(found) for kind, number in FAMILIES[family][1].items())


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3"])
def test_without_experts(family: str) -> None:
    counts = adapted(lora(fresh(family), experts=False))
    assert counts["attention"] == FAMILIES[family][1]["attention"]
    assert counts.get("experts", 0) == {"deepseek_v3": 3}.get(family, 0), "shared experts are layers like others"


@pytest.mark.parametrize(("rslora", "scale"), [(False, 2.0), (True, 4 / 2**0.5)])
def test_the_scale(rslora: bool, scale: float) -> None:
    for family in ("llama", "mixtral"):
        found = lora(fresh(family), rslora=rslora)
        scales = {module.scaling["default"] for module in found.modules() if hasattr(module, "get_delta_weight")}
        assert list(scales) == pytest.approx([scale])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.vision_tower.encoder.layers.0.self_attn.q_proj", "vision or sound"),
        ("model.layers.0.mlp.gate", "router"),
        ("model.layers.0.mlp.gate_proj", "mlp"),
        ("model.layers.0.feed_forward.router", "router"),
        ("model.layers.0.mlp.shared_expert_gate", "router"),
        ("model.layers.0.mlp.experts.down_proj", "experts"),
        ("lm_head", "head"),
        ("transformer.h.0.attn.c_proj", "attention"),
        ("transformer.h.0.mlp.c_proj", "mlp"),
    ],
)
def test_the_kind_of_a_matrix(name: str, kind: str) -> None:
    assert kind_of_matrix(name) == kind


def test_modules_that_are_not_there_or_tied_are_not_trained_whole() -> None:
    with pytest.raises(ConfigError, match=r"modules_to_save: no_such fits no module"):
        lora(fresh("llama"), modules_to_save=("no_such",))
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **BASE, tie_word_embeddings=True))
    with pytest.raises(ConfigError, match=r"modules_to_save: lm_head adapts a tied module"):
        lora(model, modules_to_save=("lm_head",))
    assert "trained whole: lm_head" in said(lora(fresh("llama"), modules_to_save=("lm_head",)))


def test_every_start_is_the_reference() -> None:
    ids = torch.arange(3, 19)[None]
    for settings in ({}, {"init": "gaussian"}, {"dora": True}, {"rslora": True}, {"modules_to_save": ("lm_head",)}):
        base = fresh("llama")
        with torch.no_grad():
            before = base(ids).logits
            torch.testing.assert_close(lora(base, **settings)(ids).logits, before, rtol=0, atol=1e-6)
