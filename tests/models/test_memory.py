"""The estimate against what autograd keeps and what the allocator hands out, at other lengths; and the choice it leads to."""

import gc
import weakref
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM

from raydpo.batches import lay_out
from raydpo.models.layout import choose_layout
from raydpo.models.logprobs import AnswerLogProbs
from raydpo.models.lora import add_lora
from raydpo.models.memory import ActivationCost, Living, compute_again, decoder_layers, measure
from raydpo.models.pretrained import switch_dropout_off

pytestmark = pytest.mark.slow

SMALL = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 500}
FAMILIES = {
    "llama": {**SMALL, "intermediate_size": 160, "num_key_value_heads": 2},
    "qwen3": {**SMALL, "intermediate_size": 160, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True},
    "gpt_neox": {**SMALL, "intermediate_size": 160},
    "gpt2": {"n_embd": 64, "n_layer": 4, "n_head": 4, "vocab_size": 500, "n_positions": 256},
}
CASES = {
    "llama": ("llama", "auto", torch.float32, False),
    "llama in bf16": ("llama", "auto", torch.bfloat16, False),
    "llama with lora": ("llama", "auto", torch.float32, True),
    "llama, padded": ("llama", "sdpa", torch.float32, False),
    "llama that keeps attention scores": ("llama", "eager", torch.float32, False),
    "qwen3, tied": ("qwen3", "auto", torch.float32, False),
    "gpt_neox": ("gpt_neox", "auto", torch.float32, False),
    "gpt2": ("gpt2", "auto", torch.float32, False),
}
PROMPT, ANSWER, PAIRS = 90, 60, 3


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def subject(case):
    """(scoring in training mode, its layout, a batch of pairs, its cost): pairs much longer than a probe."""
    family, attention, dtype, has_lora = CASES[case]
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **FAMILIES[family], pad_token_id=0, bos_token_id=1, eos_token_id=2)
    plain = "sdpa" if attention == "auto" else attention
    model = AutoModelForCausalLM.from_config(config, attn_implementation=plain).to(dtype)
    switch_dropout_off(model).eval()
    layout, _ = choose_layout(model, attention)
    if has_lora:
        model = add_lora(model, rank=4, alpha=8, target_modules="all-linear", seed=0)
    scoring = AnswerLogProbs(model.train(), chunk_tokens=64)
    draw = np.random.default_rng(0)
    rows = []
    for _ in range(PAIRS):
        prompt = draw.integers(3, 500, PROMPT)
        rows += [(prompt, draw.integers(3, 500, ANSWER - 1)), (prompt, draw.integers(3, 500, ANSWER))]
    length = PROMPT + (2 * ANSWER if layout == "packed" else ANSWER)
    return scoring, lay_out(rows, layout), measure(scoring, layout, num_answers=2, length=length)


def saved_bytes(scoring, batch):
    """Of distinct storages that autograd keeps for the backward pass, weights left out. The oracle."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*scoring.parameters(), *scoring.buffers())}
    found = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        output = scoring(batch)
    assert output.requires_grad
    return sum(found.values())


def peak_bytes(scoring, batch):
    """The most that torch's allocator has handed out at one time in a forward and backward. The other oracle."""
    embedded = []
    embeddings = scoring.model.get_input_embeddings()
    hook = embeddings.register_forward_hook(lambda module, args, output: embedded.append(output.requires_grad_(True)))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        torch.autograd.grad(scoring(batch).sum(), embedded[0])
    hook.remove()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    return int(np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]).max())


@pytest.mark.parametrize("case", CASES)
def test_the_estimate_is_what_is_kept_at_another_length(case):
    scoring, batch, cost = subject(case)
    estimate = batch.input_ids.numel() * cost.kept
    saved = [saved_bytes(scoring, batch)]
    # The estimate takes every position to be read by the head, which leaves over a few vectors a token.
    assert 0.95 * estimate < saved[0] < 1.02 * estimate
    for layers in (1, 2, 3, 4):
        compute_again(scoring.model, layers)
        saved.append(saved_bytes(scoring, batch))
    steps = [before - after for before, after in pairwise(saved)]
    # With LoRA the first layer keeps a little less, because what it reads needs no gradient.
    assert steps == pytest.approx([batch.input_ids.numel() * (cost.kept - cost.kept_again) / 4] * 4, rel=0.08)


@pytest.mark.parametrize("case", CASES)
def test_the_estimate_is_the_peak_at_another_length(case):
    scoring, batch, cost = subject(case)
    for layers in (0, 1, 3, 4):
        if layers:
            compute_again(scoring.model, layers)
        estimate, peak = cost.bytes(batch.input_ids.numel(), layers), peak_bytes(scoring, batch)
        assert 0.97 * peak < estimate < 1.15 * peak, (layers, estimate / peak)


@pytest.mark.parametrize("case", ["llama", "llama with lora", "gpt2"])
def test_measuring_leaves_nothing_behind(case):
    scoring, batch, _ = subject(case)
    assert not scoring.model.is_gradient_checkpointing
    assert all(parameter.grad is None for parameter in scoring.parameters())
    embeddings = scoring.model.get_input_embeddings()
    assert not embeddings._forward_hooks
    before = scoring(batch)
    compute_again(scoring.model, 2)
    assert len(embeddings._forward_hooks) == 1
    assert [layer.gradient_checkpointing for layer in decoder_layers(scoring.model)] == [True, True, False, False]
    torch.testing.assert_close(scoring(batch), before, rtol=0, atol=0)
    compute_again(scoring.model, 1)
    assert len(embeddings._forward_hooks) == 1


def costs():
    size = st.integers(1, 10**5).map(float)

    def build(num_layers, kept_again, more, passing, passing_again, head, chunk_tokens):
        return ActivationCost(num_layers, kept_again + more, kept_again, passing, passing_again, head, chunk_tokens)

    return st.builds(build, st.integers(1, 12), size, size, size, size, size, st.integers(1, 64))


@given(costs(), st.integers(1, 10**9), st.integers(1, 5000))
def test_what_is_chosen_fits_or_nothing_does(cost, budget, asked):
    layers, tokens = cost.choose(budget, asked)
    assert 0 <= layers <= cost.num_layers
    assert 1 <= tokens <= asked
    every = range(cost.num_layers + 1)
    if cost.bytes(tokens, layers) > budget:
        assert tokens == 1
        assert all(cost.bytes(1, k) > budget for k in every)
    if tokens < asked:
        assert all(cost.bytes(tokens + 1, k) > budget for k in every)
    else:
        assert all(cost.bytes(tokens, k) > budget for k in range(layers))


@given(costs(), st.integers(1, 10**9), st.integers(1, 10**9), st.integers(1, 5000))
def test_more_memory_never_means_more_layers_or_fewer_tokens(cost, budget, more, asked):
    layers, tokens = cost.choose(budget, asked)
    fewer_layers, more_tokens = cost.choose(budget + more, asked)
    assert more_tokens >= tokens
    assert fewer_layers <= layers


@given(costs(), st.integers(1, 5000), st.integers(1, 5000))
def test_more_tokens_never_cost_less(cost, tokens, more):
    for layers in range(cost.num_layers + 1):
        assert cost.bytes(tokens, layers) <= cost.bytes(tokens + more, layers)


def test_a_model_of_no_such_layers_can_only_be_given_fewer_tokens():
    cost = ActivationCost(0, 100.0, 100.0, 10.0, 10.0, 20.0, 4)
    assert cost.choose(10**6, 50) == (0, 50)
    assert cost.choose(1100, 50) == (0, 10)


def test_what_counts_is_gone_though_what_it_saw_stands() -> None:
    """Weights of a standing model are seen by every measurement; none of them leaves anything behind."""
    weights, counted = torch.ones(8, 8), Living()
    with counted:
        kept = weights @ weights
    assert counted.bytes == kept.untyped_storage().nbytes()
    gone = weakref.ref(counted)
    del counted
    gc.collect()
    assert gone() is None
