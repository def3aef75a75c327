"""The packed stream with shared prompts against plain forwards of each sequence, in float64: values and gradients."""

from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from raydpo.batches.micro_batches import pack_rows
from raydpo.models.attention import register
from raydpo.models.logprobs import AnswerLogProbs
from raydpo.models.pretrained import switch_dropout_off

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 61, "intermediate_size": 48}
GROUPED = {**SMALL, "num_key_value_heads": 2}
FAMILIES = {
    "llama": GROUPED,
    "mistral": {**GROUPED, "sliding_window": 4},
    "qwen2": {**GROUPED, "tie_word_embeddings": True},
    "qwen3": {**GROUPED, "head_dim": 8},
    "gemma2": {
        **GROUPED,
        "head_dim": 8,
        "final_logit_softcapping": 3.0,
        "attn_logit_softcapping": 5.0,
        "sliding_window": 4,
    },
    "gemma3_text": {**GROUPED, "head_dim": 8, "sliding_window": 4, "num_hidden_layers": 6},
    "gpt_neox": SMALL,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 61, "n_positions": 64},
}
FLOAT32_INSIDE = {"gemma2"}
"""Families that compute in float32 inside whatever their dtype."""


def models(family):
    """The same weights with eager attention and with ours."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **FAMILIES[family], pad_token_id=0, bos_token_id=1, eos_token_id=2)
    attention = "eager" if family == "gemma2" else "sdpa"  # eager attention has a softmax in float32
    plain = AutoModelForCausalLM.from_config(deepcopy(config), attn_implementation=attention).double()
    ours = AutoModelForCausalLM.from_config(config, attn_implementation=register()).double()
    ours.load_state_dict(plain.state_dict())
    return tuple(switch_dropout_off(norms_in_float64(model)) for model in (plain, ours))


def norms_in_float64(model):
    """transformers' RMS norms compute in float32 whatever the dtype, which leaves gradients no nine digits."""

    def forward(norm, hidden):
        scale = 1 + norm.weight if "Gemma" in type(norm).__name__ else norm.weight
        epsilon = getattr(norm, "variance_epsilon", None) or norm.eps
        return hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + epsilon) * scale

    for module in model.modules():
        if "RMSNorm" in type(module).__name__:
            module.forward = partial(forward, module)
    return model


def group(seed, num_answers, prompt=None, longest=9):
    draw = np.random.default_rng(seed)
    prompt = draw.integers(3, 61, draw.integers(1, longest)) if prompt is None else prompt
    return [(prompt, draw.integers(3, 61, draw.integers(1, longest))) for _ in range(num_answers)]


ROWS = {
    "one answer": group(1, 1) + group(2, 1),
    "pairs": group(3, 2) + group(4, 2, prompt=np.array([7])) + group(5, 2),
    "five answers": group(6, 5),
    "answers with a common beginning": [
        (np.array([5, 6]), np.array([9, 9, 9, 4])),
        (np.array([5, 6]), np.array([9, 9, 8])),
        (np.array([5, 6]), np.array([9])),
    ],
    "one token each": [(np.array([5]), np.array([9])), (np.array([5]), np.array([8]))],
    "one answer begins the other": [(np.array([5]), np.array([9, 3])), (np.array([5]), np.array([9, 3, 4, 4]))],
}


def plain_nats(model, rows):
    nats = []
    for prompt, answer in rows:
        ids = torch.from_numpy(np.concatenate([prompt, answer]))[None]
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        nats.append(logits.gather(1, ids[0, 1:, None]).squeeze(1)[len(prompt) - 1 :])
    return torch.cat(nats)


def assert_equal(family, rows, checkpointing=False):
    plain, ours = models(family)
    if checkpointing:
        recompute(ours)
    assert_same(plain, ours, rows, 1e-5 if family in FLOAT32_INSIDE else 1e-9)


def recompute(model):
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()


def assert_same(plain, ours, rows, tolerance):
    """Values and gradients of `ours`, packed, and of `plain`, row by row."""
    weights = torch.randn(sum(len(a) for _, a in rows), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values = AnswerLogProbs(ours, 5)(pack_rows(rows))
    (values * weights).sum().backward()
    expected = plain_nats(plain, rows)
    (expected * weights).sum().backward()
    torch.testing.assert_close(values.double(), expected, rtol=tolerance, atol=tolerance)
    theirs = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        if theirs[name].grad is not None:
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=10 * tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_values_and_gradients_equal_plain_forwards(family, rows, checkpointing):
    assert_equal(family, rows, checkpointing)


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(0, 999), st.integers(1, 3)), min_size=1, max_size=4))
def test_any_lengths(sizes):
    assert_equal("mistral", [row for seed, answers in sizes for row in group(seed, answers, longest=12)])


def test_a_prompt_is_in_the_stream_once():
    prompt = np.arange(3, 40)
    batch = pack_rows([(prompt, np.array([4, 5, 2])), (prompt, np.array([6, 2]))])
    assert batch.input_ids.shape == (1, 37 + 3 + 2)
    assert batch.position_ids[0, -2:].tolist() == [37, 38]
    assert batch.segments == ((0, 40, 0, 0), (40, 42, 0, 37))


def test_a_model_that_does_not_pass_the_segments_on_is_an_error():
    _, ours = models("llama")
    with pytest.raises(ValueError, match="does not pass the segments"):
        ours(input_ids=torch.tensor([[3, 4, 5]]))
