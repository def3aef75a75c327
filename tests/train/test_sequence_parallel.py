"""A stream that several ranks share against one rank that reads it alone, in float64: values, and gradients summed."""

import numpy as np
import pytest

from tests.models.test_attention import group
from tests.train.sequence_jobs import (
    OfStream,
    StreamCase,
    forward_and_backward,
    longest_stretch,
    peak_bytes,
    refused,
    shared,
    shared_peak_bytes,
)

PAIRS = group(3, 2) + group(4, 2, prompt=np.array([7])) + group(5, 2) + group(6, 3)
SHORT = [(np.array([5]), np.array([9])), (np.array([5]), np.array([8]))]
"""Three tokens, so that one of four ranks has padding alone."""
MASKS = [np.arange(len(answer)) % 3 != 1 if at % 2 else None for at, (_, answer) in enumerate(PAIRS)]
CASES = {
    "llama, a key head for two of queries": StreamCase("llama", PAIRS),
    "masked answers, an adapter, layers recomputed": StreamCase("llama", PAIRS, MASKS, with_lora=True, recomputed=2),
    "windows, the head in chunks": StreamCase("mistral", PAIRS, chunk_tokens=5),
    "learned positions, a tied head": StreamCase("gpt2", PAIRS, MASKS),
    "soft-capped attention and logits": StreamCase("gemma2", PAIRS),
    "collisions": StreamCase("qwen3", PAIRS, options=(("extra", "collisions"),)),
    "experts and what their routers did": StreamCase("mixtral", PAIRS, options=(("top_k", 2),)),
    "fewer tokens than ranks": StreamCase("llama", SHORT),
}
FLOAT32_INSIDE = {"gemma2", "mixtral"}


def alone(case: StreamCase) -> OfStream:
    scoring = case.scoring()
    values = forward_and_backward(scoring, case.batch, case.options)
    trained = {name: p for name, p in scoring.named_parameters() if p.requires_grad}
    return OfStream(values, {n: np.zeros(p.shape) if p.grad is None else p.grad.numpy() for n, p in trained.items()})


def assert_close(ours: np.ndarray, theirs: np.ndarray, tolerance: float, what: str) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance, err_msg=what)


@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values_and_gradients_are_those_of_one_rank(gangs, case, num_ranks):
    expected, tolerance = alone(case), 1e-5 if case.family in FLOAT32_INSIDE else 1e-9
    assert any(np.abs(gradient).max() > 1e-3 for gradient in expected.gradients.values())
    for found in gangs[num_ranks].run(shared, [case], num_ranks):
        for ours, theirs in zip(found.values, expected.values, strict=True):
            assert_close(ours, theirs, tolerance, "values")
        assert found.gradients.keys() == expected.gradients.keys()
        for name, gradient in found.gradients.items():
            assert_close(gradient, expected.gradients[name], tolerance, name)


def test_two_groups_of_two_ranks_read_a_batch_each(gangs):
    cases = [StreamCase("llama", PAIRS), StreamCase("llama", SHORT)]
    one, other = (alone(case) for case in cases)
    answers = gangs[4].run(shared, cases, 2)
    for found, expected in zip(answers, [one, one, other, other], strict=True):
        assert_close(found.values[0], expected.values[0], 1e-9, "values")
        for name, gradient in found.gradients.items():
            assert_close(gradient, one.gradients[name] + other.gradients[name], 1e-9, name)


def test_a_rank_computes_its_share_of_tokens_and_attention_all_of_them(gangs):
    prompt, answer = np.arange(3, 56), np.arange(3, 13)
    case = StreamCase("llama", [(prompt, answer), (prompt, answer[::-1])])  # 53 + 2 x 10 tokens
    stretches = gangs[4].run(longest_stretch, case)
    assert [mlp for mlp, _, _ in stretches] == [19] * 4
    assert [keys for _, keys, _ in stretches] == [76] * 4, "three of padding"
    assert [head for _, _, head in stretches] == [0, 0, 6, 14], "answer tokens are read by whom their predictor is with"


def test_heads_that_do_not_divide_and_ranks_left_over_are_refused(gangs):
    (said, *_) = gangs[3].run(refused, CASES["llama, a key head for two of queries"], 3)
    assert "sequence_parallel_size: 3" in said
    assert "4" in said.partition("model has")[2][:4]
    (said, *_) = gangs[3].run(refused, CASES["llama, a key head for two of queries"], 2)
    assert "3 ranks do not come out even in groups of 2" in said


@pytest.mark.slow
def test_two_ranks_hold_half_of_a_prompt_of_32k_tokens_each(gangs):
    draw = np.random.default_rng(0)
    prompt = draw.integers(3, 61, 32768)
    case = StreamCase("llama", [(prompt, draw.integers(3, 61, 9)), (prompt, draw.integers(3, 61, 6))])
    alone, expected = peak_bytes(case)
    for peak, nats in gangs[2].run(shared_peak_bytes, case):
        assert_close(nats, expected, 1e-5, "values")
        assert peak < 0.55 * alone, (peak, alone)
