"""A model that is another function in training mode is refused with the module that makes it so; all others pass."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from raydpo.errors import ConfigError
from raydpo.models.pretrained import switch_dropout_off
from raydpo.models.training_mode import check_training_mode
from tests.models.test_attention import FAMILIES, SMALL
from tests.models.test_layout import OTHERS, model_of

EXPERTS = {**SMALL, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}


def experts(family, dtype=torch.float32, **settings):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **EXPERTS, **settings)
    return switch_dropout_off(AutoModelForCausalLM.from_config(config).to(dtype).eval())


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_these_are_one_function_and_left_as_they_were(family):
    model, state = switch_dropout_off(model_of(family)), torch.random.get_rng_state()
    attention = model.config._attn_implementation
    check_training_mode(model)
    assert not any(module.training or module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.config._attn_implementation == attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_router_that_samples_its_experts(dtype):
    """Among near ties only: these tokens may meet none."""
    with pytest.raises(
        ConfigError, match=r"Phimoe.* draws random numbers .*PhimoeTopKRouter, router_jitter_noise: 0\.01"
    ):
        check_training_mode(experts("phimoe", dtype))


def test_a_router_whose_input_is_jittered_and_the_same_without():
    with pytest.raises(ConfigError, match=r"model\.layers\.0\.mlp .*jitter_noise: 0\.1.* by uniform_"):
        check_training_mode(experts("mixtral", router_jitter_noise=0.1))
    check_training_mode(experts("mixtral"))


def test_dropout_that_is_drawn_and_dropout_that_is_off():
    torch.manual_seed(0)
    shape = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 16, "vocab_size": 20}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **shape))
    with pytest.raises(ConfigError, match="draws random numbers"):
        check_training_mode(model)
    check_training_mode(switch_dropout_off(model))


def test_layerdrop_that_is_off_draws_a_number_and_changes_nothing():
    shape = {"hidden_size": 32, "ffn_dim": 48, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 20}
    config = AutoConfig.for_model("opt", **shape, word_embed_proj_dim=32, max_position_embeddings=32, layerdrop=0.1)
    check_training_mode(switch_dropout_off(AutoModelForCausalLM.from_config(config)))


def test_a_forward_that_is_another_one_in_training_mode_without_any_chance():
    model = model_of("llama")
    head = model.lm_head
    model.lm_head = Louder(head)
    with pytest.raises(ConfigError, match="other log-probs in training mode than in evaluation mode"):
        check_training_mode(model)


class Louder(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, hidden):
        return self.head(hidden) * (50.0 if self.training else 1.0)
