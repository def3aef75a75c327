"""Whether a model takes packed answers is found out by trying, and the numbers are right either way; FLOPs are counted."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from raydpo.batches import collate_rows, lay_out
from raydpo.errors import ConfigError
from raydpo.generate.limits import Limits
from raydpo.models.attention import register
from raydpo.models.config_file import num_positions
from raydpo.models.layout import check_lengths, choose_layout, longest_exact
from raydpo.models.logprobs import AnswerLogProbs
from raydpo.models.pretrained import load_model
from tests.models.test_attention import FAMILIES, ROWS, SMALL, plain_nats

OTHERS = {
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 61, "state_size": 4},
    "mamba2": {
        **{"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 61, "state_size": 8},
        **{"num_heads": 4, "head_dim": 16, "n_groups": 2, "chunk_size": 8},
    },
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 61},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "expansion_ratio": 2, "max_seq_len": 64, "vocab_size": 61},
    "lfm2": {**SMALL, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]},
}


def model_of(family, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    shape = {**FAMILIES, **OTHERS}[family]
    config = AutoConfig.for_model(family, **shape, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    attention = "eager" if family in ("gemma2", "mamba", "mamba2", "bloom", "mpt") else "sdpa"
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).to(dtype).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_models_of_these_families_share_prompts(family):
    assert choose_layout(model_of(family), "auto") == ("packed", "")


@pytest.mark.parametrize("family", OTHERS)
def test_models_that_carry_a_state_along_or_have_no_positions_are_padded_and_right(family):
    """A state or a bias by distance runs through the stream where an attention does not: answers would see each other."""
    model = model_of(family)
    layout, why = choose_layout(model, "auto")
    assert layout == "padded"
    assert type(model).__name__ in why
    rows = ROWS["pairs"]
    with torch.no_grad():
        ours = AnswerLogProbs(model)(lay_out(rows, layout))
        torch.testing.assert_close(ours, plain_nats(model, rows), atol=1e-4, rtol=1e-4)


WINDOWED = {**SMALL, "num_key_value_heads": 2, "sliding_window": 4, "num_experts": 4, "num_local_experts": 4}


@pytest.mark.parametrize("family", [*FAMILIES, "bloom", "mpt"])
def test_half_precision_reads_as_float32_does(family):
    expected = choose_layout(model_of(family), "auto")[0]
    model = model_of(family).bfloat16()
    assert choose_layout(model, "auto")[0] == expected == ("packed" if family in FAMILIES else "padded")
    assert (model.config._attn_implementation == register()) == (expected == "packed")
    assert model.dtype == torch.bfloat16


def test_rounding_hides_no_bias_by_distance():
    """Weights so small that ALiBi moves log-probs by less than bfloat16 rounds them."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "n_layer": 4, "n_head": 4, "vocab_size": 500, "initializer_range": 0.005}
    config = AutoConfig.for_model("bloom", **shape)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").bfloat16().eval()
    assert choose_layout(model, "auto")[0] == "padded"


@pytest.mark.parametrize("family", ["phimoe", "qwen2_moe"])
def test_a_window_that_only_the_mask_has_is_not_lost(family):
    """Rows longer than the window: packed without a mask they would see too far."""
    config = AutoConfig.for_model(family, **WINDOWED, use_sliding_window=True, max_window_layers=0)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    layout, why = choose_layout(model, "auto")
    assert (layout, "sliding window in the mask alone" in why) == ("padded", True)
    rows = ROWS["pairs"]
    assert max(len(prompt) + len(answer) for prompt, answer in rows) > 4
    with torch.no_grad():
        ours = AnswerLogProbs(model)(lay_out(rows, layout))
        torch.testing.assert_close(ours, plain_nats(model, rows), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_positions_that_depend_on_the_batch_are_refused(rope_type):
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4} if rope_type == "longrope" else {}
    rope = {
        "rope_type": rope_type,
        "factor": 2.0,
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 32,
        **factors,
    }
    shape = {**FAMILIES["llama"], "max_position_embeddings": 64 if rope_type == "longrope" else 32}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **shape, rope_parameters=rope))
    assert longest_exact(model) == 32
    check_lengths(model, 32)
    with pytest.raises(ConfigError, match=r"beyond 32 tokens.*Set data.max_length: 32"):
        check_lengths(model, 33)
    assert longest_exact(model_of("llama")) is None


@pytest.mark.parametrize(
    ("family", "positions"), [("mamba2", None), ("mamba", None), ("bloom", None), ("mpt", 64), ("gpt2", 64)]
)
def test_a_model_without_a_limit_of_positions_takes_any_length(family, positions):
    model = model_of(family)
    assert num_positions(model.config) == positions
    assert Limits.of(model.config) == Limits(61, positions)
    assert longest_exact(model) is None
    check_lengths(model, 10**6)


def test_gemma2_is_loaded_and_shares_prompts(tmp_path):
    """transformers has no sdpa for it."""
    model_of("gemma2").save_pretrained(tmp_path)
    assert choose_layout(load_model(tmp_path, "float32", "auto"), "auto") == ("packed", "")


def test_a_named_attention_is_left_alone():
    model = model_of("llama")
    assert choose_layout(model, "sdpa") == ("padded", "model.attention is sdpa")
    assert model.config._attn_implementation == "sdpa"


def test_a_long_prompt_is_computed_once():
    """8 pairs of 300 / 30 / 30: the stream has 0.545 of the tokens; padding alone would cost more on uneven lengths."""
    draw = np.random.default_rng(0)
    rows = []
    for _ in range(8):
        prompt = draw.integers(3, 61, 300)
        rows += [(prompt, draw.integers(3, 61, 30)) for _ in range(2)]
    counted = {}
    for layout in ("packed", "padded"):
        model = model_of("llama")
        assert choose_layout(model, "auto" if layout == "packed" else "sdpa")[0] == layout
        with FlopCounterMode(display=False) as counter:
            AnswerLogProbs(model)(lay_out(rows, layout)).sum().backward()
        counted[layout] = counter.get_total_flops()
    assert counted["packed"] / counted["padded"] < 0.60
    assert lay_out(rows, "packed").input_ids.numel() == 8 * (300 + 60)
    assert collate_rows(rows).input_ids.numel() == 16 * 330
